from paceline.core.config import EngineConfig as EngineConfig
from paceline.core.config import SpeculativeConfig as SpeculativeConfig
from paceline.core.errors import CheckpointError as CheckpointError
from paceline.core.errors import ConfigError as ConfigError
from paceline.core.errors import InvalidRequestError as InvalidRequestError
from paceline.core.errors import PacelineError as PacelineError
from paceline.core.outputs import CompletionOutput as CompletionOutput
from paceline.core.outputs import RequestMetrics as RequestMetrics
from paceline.core.outputs import RequestOutput as RequestOutput
from paceline.core.outputs import TokenLogprobs as TokenLogprobs
from paceline.core.params import SamplingParams as SamplingParams
from paceline.engine.llm import LLM as LLM

__version__: str
__all__: list[str]
