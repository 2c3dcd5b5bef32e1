from .inferer import PairInferer as PairInferer
from .monai_transforms import (
    RegisterPair as RegisterPair,
)
from .monai_transforms import (
    RegisterPaird as RegisterPaird,
)
from .monai_transforms import (
    WarpWithDDF as WarpWithDDF,
)
from .monai_transforms import (
    WarpWithDDFd as WarpWithDDFd,
)
from .optimisation.fitting import Components as Components
from .optimisation.fitting import Fit as Fit
from .optimisation.fitting import fit as fit
from .optimisation.handlers import (
    BestFit as BestFit,
)
from .optimisation.handlers import (
    EarlyStop as EarlyStop,
)
from .optimisation.handlers import (
    OnInterrupt as OnInterrupt,
)
from .optimisation.handlers import (
    ProgressBar as ProgressBar,
)
from .optimisation.handlers import (
    TensorBoardCurves as TensorBoardCurves,
)
from .optimisation.levels import Level as Level
from .optimisation.levels import PairBatch as PairBatch
from .optimisation.levels import make_levels as make_levels
from .optimisation.trainer import DivergedError as DivergedError
from .optimisation.trainer import PairTrainer as PairTrainer
from .pair_map import PairMap as PairMap
from .register_pair import register as register
from .result import Registration as Registration
from .sequences.monai_transform import RegisterSequenced as RegisterSequenced
from .sequences.register_sequence import register_sequence as register_sequence
from .sequences.result import SequenceRegistration as SequenceRegistration
from .settings import Settings as Settings
from .settings import SettingsError as SettingsError
