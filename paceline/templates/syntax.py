"""Knows which of Jinja's constructs are bounded, and hands to the environment what generated code does by itself.

Generated code compares, slices and joins natively and runs loops whose body is never entered. Those places become
calls of filters whose names a template cannot write.
"""

from __future__ import annotations

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from paceline.templates.budget import OutsideError

TICK, JOIN, SLICE, KEY, COMPARE = " tick", " join", " slice", " key", " compare "
COMPARISONS = ("eq", "ne", "lt", "lteq", "gt", "gteq", "in", "notin")
BOUNDED: frozenset[type[nodes.Node]] = frozenset(
    {
        *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Scope, nodes.With, nodes.ExprStmt),
        *(nodes.For, nodes.Break, nodes.Continue, nodes.If, nodes.CondExpr),
        *(nodes.Macro, nodes.Call, nodes.CallBlock, nodes.Keyword, nodes.Filter, nodes.FilterBlock, nodes.Test),
        *(nodes.Assign, nodes.AssignBlock, nodes.Name, nodes.NSRef),
        *(nodes.Const, nodes.Tuple, nodes.List, nodes.Dict, nodes.Pair),
        *(nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Compare, nodes.Operand, nodes.Concat),
        *(nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos),
        *(nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Pow),
    }
)


class Instrument(NodeTransformer):
    """Raises OutsideError for a construct that is not in ``BOUNDED``."""

    def generic_visit(self, node: nodes.Node, *args: object, **kwargs: object) -> nodes.Node:
        if type(node) not in BOUNDED:
            raise OutsideError
        return super().generic_visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 (Jinja's visitor names)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_filter(TICK, nodes.Const(None)), lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(_filter(TICK, nodes.Const(None)), node.test, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        return _filter(JOIN, *node.nodes)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        if len(node.ops) != 1:
            raise OutsideError  # A chain, whose later operands may not be computed.
        return _filter(COMPARE + node.ops[0].op, node.expr, node.ops[0].expr)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        part = node.arg
        return _filter(SLICE, node.node, *(bound or nodes.Const(None) for bound in (part.start, part.stop, part.step)))

    def visit_Pair(self, node: nodes.Pair) -> nodes.Pair:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = _filter(KEY, node.key)
        return node


def _filter(name: str, first: nodes.Expr, *others: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(first, name, list(others), [], None, None, lineno=first.lineno)
