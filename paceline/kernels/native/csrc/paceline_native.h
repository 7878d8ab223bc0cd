// The C interface of the native kernels: plain structs of pointers, sizes and strides.
//
// Callers check everything (paceline/kernels/native/*.py); the kernels trust what they are given.
#ifndef PACELINE_NATIVE_H
#define PACELINE_NATIVE_H

#include <stdint.h>

#define PACELINE_API __attribute__((visibility("default")))
#define PACELINE_INTERFACE_VERSION 13

#ifdef __cplusplus
extern "C" {
#endif

enum paceline_dtype { PACELINE_FLOAT32, PACELINE_BFLOAT16, PACELINE_FLOAT16 };
enum paceline_kind { PACELINE_FP32, PACELINE_BF16, PACELINE_FP16, PACELINE_INT8, PACELINE_INT4 };
enum paceline_activation { PACELINE_SILU, PACELINE_GELU, PACELINE_GELU_TANH, PACELINE_RELU };
enum paceline_code {
    PACELINE_LINEAR,
    PACELINE_RMS_NORM,
    PACELINE_LAYER_NORM,
    PACELINE_ROTARY,
    PACELINE_GATE,
    PACELINE_READ,
    PACELINE_HEADS,
    PACELINE_ATTENTION,
    PACELINE_SAMPLE,
    PACELINE_GATHER,
    PACELINE_LOGPROBS,
    PACELINE_PREPARE_ROWS,
    PACELINE_GROW_CHAIN,
    PACELINE_GROW_TREE,
    PACELINE_ACCEPT,
    PACELINE_MOVE_CELLS,
    PACELINE_SCATTER,
    PACELINE_EXPAND,
    PACELINE_INHERIT_ROWS,
    PACELINE_PRUNE_TREE,
    PACELINE_NUM_CODES
};
enum paceline_no_token { PACELINE_NAN_ROW = -1, PACELINE_BANNED_ROW = -2 };
enum paceline_status {
    PACELINE_OK,
    PACELINE_NO_SUCH_LEVEL,
    PACELINE_NO_SUCH_CODE,
    PACELINE_NO_MEMORY,
    PACELINE_INTERRUPTED
};

// Rows of contiguous elements; `stride` elements lie between the starts of two rows.
typedef struct {
    void *data;
    int64_t stride;
    int64_t dtype;
} paceline_matrix;

// out[rows, out_features] = x[rows, in_features] W^T + bias.
//
// Packed weights: panels of 64 outputs, padded with zeros; in a panel, `step` neighbouring inputs of all 64 outputs lie
// together (fp32, fp16: 1; bf16: 2; int8: 4; int4: 8, inputs 0-3 in the low and 4-7 in the high halves of four bytes).
// Behind the weights of each group of int4 lie the scales of all 64 outputs, fp16.
typedef struct {
    paceline_matrix x, out;
    int64_t rows, in_features, out_features;
    int64_t kind, group_size;  // group_size: inputs that share a scale (int4)
    const void *weight;
    const float *scale;   // int8: [out]
    const int32_t *sums;  // int8: of each output's weights
    const float *bias;    // [out] or NULL. These three are padded to whole panels.
} paceline_linear;

// RMSNorm or LayerNorm of x, or of residual + x, which then replaces the residual.
typedef struct {
    paceline_matrix x, residual, out;  // residual.data may be NULL
    int64_t rows, size;
    const float *weight;  // [size]
    const float *bias;    // [size] or NULL; LayerNorm's
    double epsilon;
} paceline_norm;

// Turns channel pairs (i, i + rotary_dim / 2) of every head; out may be x itself.
typedef struct {
    paceline_matrix x, out;  // [rows, heads, head_dim]
    int64_t rows, heads, head_dim, rotary_dim;
    int64_t head_stride, out_head_stride;
    paceline_matrix cosine, sine;  // [rows, rotary_dim]; the first half of the sines is negated
} paceline_rotary;

// out = activation(gate) * up, or activation(gate) if up.data is NULL.
typedef struct {
    paceline_matrix gate, up, out;
    int64_t rows, size, activation;
} paceline_gate;

// *sum = the int32 words of `data`, added up modulo 2^32; a probe of how fast memory is read.
typedef struct {
    const void *data;
    int64_t size;  // bytes, a multiple of 128
    int32_t *sum;
} paceline_read;

// K/V of one layer: cells [page, kv_head, offset, head_dim]; a cell is named by page * page_size + offset.
typedef struct {
    void *k, *v;
    int64_t dtype, page_size;
} paceline_pool;

// Splits packed rows [query heads, key heads, value heads]: norms and rotates queries and keys, writes keys and values
// to their cells.
typedef struct {
    paceline_matrix qkv;  // [rows, (heads + 2 kv_heads) * head_dim]
    paceline_matrix q;    // [rows, heads * head_dim]; may lie in qkv itself
    int64_t rows, heads, kv_heads, head_dim;
    int64_t rotary_dim;            // 0: nothing is rotated
    paceline_matrix cosine, sine;  // [any, rotary_dim]; the first half of the sines is negated
    const int64_t *angle_rows;     // [rows] of cosine and sine; NULL: a row's own number
    const float *q_norm, *k_norm;  // RMSNorm of each head: [head_dim] or NULL
    double epsilon;
    paceline_pool pool;
    const int64_t *cells;  // [rows]
} paceline_heads;

// What rows see of their requests: slots [first_visible, visible), and the slots context + i of the bits i that are
// set. Position p < visible is slot p; position visible + k is the slot of the k-th set bit, counted from 0.
typedef struct {
    int64_t requests, rows;
    const int32_t *row_start;      // [requests + 1]
    const int32_t *visible;        // [rows]
    const int32_t *first_visible;  // [rows] positions, or NULL: all from 0 on
    const int32_t *context;        // [requests]
    const int64_t *tree_bits;      // [rows, words]; bit i % 64 of word i / 64
    int64_t words;
    const int32_t *page_table;  // [requests, pages]
    int64_t page_table_stride;
    int64_t most_visible;  // if above 0, ops before write `visible`, and this is the most that it will be
} paceline_visibility;

// out = softmax(q K^T * scale) V over what each row sees; consecutive query heads share a K/V head. out may be q.
typedef struct {
    paceline_matrix q, out;  // [rows, heads * head_dim]
    int64_t heads, kv_heads, head_dim;
    double scale;
    double softcap;  // scores become softcap * tanh(score / softcap); 0: they stay
    paceline_pool pool;
    const paceline_visibility *visibility;
} paceline_attention;

// A token's logit x becomes (x > 0 ? x / repetition : x * repetition) - first - second, or -inf if `first` is infinite.
typedef struct {
    int32_t token;
    float repetition, first, second;
} paceline_edit;

// tokens[row] = the token that each row of logits becomes under the controls of its seat, or a paceline_no_token.
typedef struct {
    paceline_matrix logits;  // [rows, size]
    paceline_matrix copies;  // float32 [any, size]: rows whose logits controls have changed
    int64_t rows, size;
    int64_t *tokens;
    const int64_t *copy;  // [rows]: the row of `copies` to use instead, or -1; NULL: none
    const uint64_t *const *allowed;  // [rows]: a row's words of a bit per token, NULL: all tokens; NULL: so for all rows
    const int64_t *edit_start;       // [rows + 1]: where a row's edits start; NULL: there are none
    const paceline_edit *edits;      // made in this order, where tokens that are not allowed are -inf already
    const int32_t *seats;  // [rows]
    const int64_t *output_index;  // [rows]
    const int64_t *places;        // [rows]: where in `tokens` each row's token goes; NULL: one behind another
    // By seat.
    const double *temperature, *top_p, *min_p, *min_p_margin;  // min_p_margin: the logarithm of min_p
    const int64_t *top_k, *seed, *sample_index;
    const uint8_t *greedy;
} paceline_sample;

// out[row] = scale * table[index[row] + offset], or scale * table[row] if index is NULL; `add` adds it to out instead.
typedef struct {
    paceline_matrix table, out;
    const int64_t *index;
    int64_t rows, size, offset, add;
    double scale;
} paceline_gather;

// out[index[row]] = x[row], of rows whose index is not negative. No two of them have the same index.
typedef struct {
    paceline_matrix x, out;
    const int64_t *index;
    int64_t rows, size;
} paceline_scatter;

// out[row][i] = x[row][columns[i]], or -inf where the column is negative; `size` columns of out, both of float32.
typedef struct {
    paceline_matrix x, out;
    const int64_t *columns;
    int64_t rows, size;
} paceline_expand;

// What the log-probabilities of tokens under rows of logits are made of: a token's is its logit less the row's log sum of
// exponentials. Ranks count from 1; the best tokens come in the order of their numbers, of equals the lowest.
typedef struct {
    paceline_matrix logits;  // [any, size]
    int64_t rows, size, width;
    const int64_t *index;   // [rows] of logits
    const int64_t *tokens;  // [rows]
    const int64_t *top;     // [rows]: how many of the best tokens are wanted, up to `width`
    double *log_sums;       // [rows]; NaN where a logit is NaN or the best is not finite
    float *own_logits;      // [rows]
    int64_t *ranks;         // [rows]
    int32_t *top_tokens;    // [rows, width]
    float *top_logits;      // [rows, width]
} paceline_logprobs;

// The nodes that requests draft. Node i's slot is context + i; its parent is a node before it, or -1: the last known token.
typedef struct {
    int64_t width;          // most nodes of a request
    int64_t *tokens;        // [requests, width]; negative where a row could not be sampled
    int32_t *parents;       // [requests, width]; NULL: node i - 1
    int32_t *depths;        // [requests, width]: 1 for a child of the last known token; NULL: i + 1
    int64_t *bits;          // [requests, width, words]: bit j of node i is set if j is i or an ancestor of i
    int64_t words;          // 0 where every draft is a chain
    double *scores;         // [requests, width]: log-probabilities of the nodes' paths; only grown trees have them
    int32_t *counts;        // [requests]: nodes in use
} paceline_draft;

// The stop ids of requests.
typedef struct {
    const int64_t *tokens;  // those of one request behind those of another
    const int64_t *start;   // [requests + 1]
} paceline_stops;

// Where rows lie in one layer group.
typedef struct {
    const int32_t *page_table;  // [requests, pages]
    int64_t page_table_stride, page_size;
    int64_t window;          // 0: rows see all before them
    int64_t *cells;          // [rows]; of an accepted path: pairs of a cell and where it moves
    int32_t *first_visible;  // [rows]; NULL where rows see all before them
} paceline_row_group;

// Lays out the rows of a stage, request by request: known tokens from `start` on, then nodes of the draft. The last known
// token and the nodes are sampled. A known token at slot s has position s and sees slots up to s; a node of a chain as
// well. A node of a tree has position context + depth - 1 and sees known tokens and its ancestors. No row sees a slot
// before `first_slot`, except its own.
//
// Of a stage of mask nodes `limit` is how deep a draft may be, and the draft is not looked at: node i decides output token
// `first_output` + i, and is not sampled where that is negative. It is like a node of a chain, or sees all nodes.
typedef struct {
    int64_t requests;
    const int32_t *seats, *context;  // [requests]; context: known tokens
    const int32_t *start;            // [requests]: the first known token that is fed; NULL: none is
    const int64_t *first_index;      // [requests]: output tokens
    const uint8_t *sampled;          // [requests]: whether anything of it is sampled
    const uint8_t *ended;            // [requests]: it has no rows; NULL: none has ended
    const int32_t *tokens;           // [seats, tokens_stride]: known ones
    int64_t tokens_stride;
    const paceline_draft *draft;
    int64_t first_node, num_nodes;  // nodes [first_node, first_node + num_nodes) below ...
    const int32_t *limit;           // [requests]
    int64_t position_shift, first_slot;
    int64_t last;               // 1: of the known tokens only the last one is fed
    int64_t masks, mask_token, first_output;  // masks: 1: nodes are masks
    int64_t repeats_last;                     // 1: node 0 is the last known token instead
    int64_t sees_all;
    const int64_t *angle_base;  // [requests]: positions less what their rows of angles are numbered
    int64_t *token_ids, *positions, *angle_rows;  // [rows]; angle_rows may be NULL
    int32_t *visible;                             // [rows]
    int64_t *tree_bits;                           // [rows, draft words]
    int32_t *row_start, *sample_start;            // [requests + 1]
    int64_t *logit_rows, *output_index;           // [samples]
    int32_t *sample_seats;                        // [samples]
    int64_t *places;      // [samples]: request * places_stride + 0, or the node + 1; of masks the output token
    int64_t *mask_rows;   // [rows]: the row itself of a mask node, else -1; NULL: nobody asks
    int64_t places_stride;
    int64_t num_groups;
    const paceline_row_group *groups;
    const paceline_row_group *before;  // the known slot before each row, in another model's group; NULL: nobody asks
    int64_t num_row_fields, num_sample_fields;  // numbers in later ops that become the number of rows, and of samples
    int64_t *const *row_fields, *const *sample_fields;
} paceline_prepare_rows;

// Takes node `node` of chains, whose tokens have been sampled.
typedef struct {
    int64_t requests, node;
    const paceline_draft *draft;
    const int32_t *depth;  // [requests]: how deep a draft may be
    paceline_stops stops;
    uint8_t *growing;      // [requests]: whether a further node is drafted
    uint8_t *broken;       // [requests]: set where a row was NaN
    int32_t *limit;        // [requests]: node + 1 where it is fed, else 0
} paceline_grow_chain;

// Takes the next level of trees: of the best tokens behind each node of the level before, the `width` best paths.
typedef struct {
    int64_t requests, level;       // of these nodes' parents; 0: the last known token
    int64_t width, most;           // nodes of a level; tokens behind each parent
    int64_t shared;                // 1: a request has one row, which tells of all parents
    const paceline_draft *draft;
    const int32_t *depth;          // [requests]
    const int32_t *sample_start;   // [requests + 1]: of the parents' rows, in the order of their nodes
    const int32_t *top_tokens;     // [parents, most]
    const float *top_logits;       // [parents, most]
    const double *log_sums;        // [parents]
    uint8_t *broken;               // [requests]
    int32_t *limit;                // [requests]: nodes that are fed next
    double *room;                  // [parents * most]: scores of candidates
} paceline_grow_tree;

// Leaves of each tree the `num_nodes` nodes of the best scores, of equals the first ones, numbered anew in their order. No
// path scores more than a path that it goes on from, so that a node's ancestors stay with it.
typedef struct {
    int64_t requests, num_nodes;
    const paceline_draft *draft;
    int32_t *room;  // [draft width]
} paceline_prune_tree;

// Where in an earlier stage the row of each node's parent lies: parents[row] of its rows, for a stage of nodes alone.
typedef struct {
    int64_t requests;
    const paceline_draft *draft;
    int64_t first_node;           // of the stage
    int64_t first_sample;         // the node of the earlier stage's first sample; -1: the last known token
    const int32_t *row_start;     // [requests + 1]: of the stage
    const int32_t *sample_start;  // [requests + 1]: of the earlier one
    const int64_t *logit_rows;    // [samples]: of the earlier one
    int64_t *parents;             // [rows]
} paceline_inherit_rows;

// Ends a round: walks each draft as far as it equals what was sampled, and moves on what is known.
typedef struct {
    int64_t requests, length;      // length: most tokens of a path
    int64_t feeds_again;           // 1: the drafter keeps K/V of no node, also of a chain
    const paceline_draft *draft;
    const int64_t *samples;        // [requests, draft width + 1]: of the last known token, and of each node
    const int32_t *seats;
    const int32_t *depth;          // [requests]: 0 where nothing was drafted
    uint8_t *sampled, *ended;      // [requests]
    int32_t *context, *target_start, *draft_start;  // [requests]; draft_start may be NULL
    int64_t *first_index;
    int32_t *tokens;               // [seats, tokens_stride]
    int64_t tokens_stride;
    paceline_stops stops;
    int64_t *round;                // which round this is, from 0; counted up
    int64_t *all_ended;            // 0 or 1: no further round of the call is run
    int64_t num_groups;
    const paceline_row_group *groups;  // the target's; their cells become pairs
    int64_t *num_moves;                // NULL: every draft is a chain
    // By round.
    int64_t *out_tokens;   // [requests, length + 1]
    int32_t *out_path;     // [requests, length]: accepted nodes
    int32_t *out_counts, *out_accepted, *out_nodes;  // [requests]: tokens, accepted nodes, nodes
} paceline_accept;

// Cells of one pool, K or V of one layer.
typedef struct {
    void *data;
    int64_t cell_bytes, page_size, kv_heads;
    const int64_t *moves;  // pairs: from, to
} paceline_cells;

// Moves cells, one after the other, in every pool.
typedef struct {
    int64_t num_pools;
    const paceline_cells *pools;
    const int64_t *num_moves;
} paceline_move_cells;

typedef struct {
    int64_t code;
    const void *arguments;  // the struct of the code
} paceline_op;

PACELINE_API int64_t paceline_interface_version(void);

// Levels that were compiled, narrow ones first. NULL behind the last.
PACELINE_API const char *paceline_level_name(int64_t level);
PACELINE_API int64_t paceline_level_supported(int64_t level);

// Runs the ops in order in one parallel region. Every result has the same bits at any number of threads.
//
// `interrupt` may be NULL; else any thread may make it nonzero meanwhile, and no op begins after the one that is next then.
// Each op has run as a whole or not at all.
PACELINE_API int64_t paceline_run(int64_t level, const paceline_op *ops, int64_t count, int64_t num_threads,
                                  const int32_t *interrupt);

#ifdef __cplusplus
}
#endif
#endif
