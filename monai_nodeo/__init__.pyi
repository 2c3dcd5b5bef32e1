from .apps import correct_motion as correct_motion
from .flows import Flow as Flow
from .registration import (
    PairInferer as PairInferer,
)
from .registration import (
    RegisterPair as RegisterPair,
)
from .registration import (
    RegisterPaird as RegisterPaird,
)
from .registration import (
    Registration as Registration,
)
from .registration import (
    Settings as Settings,
)
from .registration import (
    WarpWithDDF as WarpWithDDF,
)
from .registration import (
    WarpWithDDFd as WarpWithDDFd,
)
from .registration import (
    register as register,
)

__version__: str
