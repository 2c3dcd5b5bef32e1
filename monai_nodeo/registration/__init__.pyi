from .fitting import Components as Components
from .fitting import Fit as Fit
from .fitting import fit as fit
from .handlers import (
    BestFit as BestFit,
)
from .handlers import (
    EarlyStop as EarlyStop,
)
from .handlers import (
    OnInterrupt as OnInterrupt,
)
from .handlers import (
    ProgressBar as ProgressBar,
)
from .handlers import (
    TensorBoardCurves as TensorBoardCurves,
)
from .inferer import PairInferer as PairInferer
from .levels import Level as Level
from .levels import PairBatch as PairBatch
from .levels import make_levels as make_levels
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
from .pair_map import PairMap as PairMap
from .register_pair import register as register
from .result import Registration as Registration
from .sequence import register_sequence as register_sequence
from .sequence_result import SequenceRegistration as SequenceRegistration
from .sequence_transform import RegisterSequenced as RegisterSequenced
from .settings import Settings as Settings
from .settings import SettingsError as SettingsError
from .trainer import DivergedError as DivergedError
from .trainer import PairTrainer as PairTrainer
