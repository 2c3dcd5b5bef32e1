from .fusion import Fused as Fused
from .fusion import fuse as fuse
from .propagation import FUSIONS as FUSIONS
from .propagation import Propagation as Propagation
from .propagation import propagate as propagate
from .transforms import (
    PropagateLabelsd as PropagateLabelsd,
)
