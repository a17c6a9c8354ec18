"""What trains: one function for each method, and `prepare`, which calls the configured one."""

from sparta_bench.config.schema import Config, FullFtConfig, HeadConfig, LoraConfig, SpartaConfig
from sparta_bench.methods.full_ft import full_ft
from sparta_bench.methods.head import head
from sparta_bench.methods.lora import lora
from sparta_bench.methods.sparta import sparta
from sparta_bench.methods.trained import Trained
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.dtypes import Precision


def prepare(classifier: Classifier, config: Config, precision: Precision) -> Trained:
    """Apply the configured method to a classifier whose parameters are all frozen.

    Raises
    ------
    InputError
        If the method does not fit the model: unknown modules, a density that cannot be had.
    """
    match config.method:
        case FullFtConfig():
            return full_ft(classifier, precision)
        case HeadConfig():
            return head(classifier)
        case LoraConfig() as method:
            return lora(classifier, method, precision, config.seed)
        case SpartaConfig() as method:
            return sparta(classifier, method, precision, config.seed)
