from .certificate import (
    Certificate as Certificate,
)
from .certificate import (
    Residual as Residual,
)
from .certificate import (
    certify_field as certify_field,
)
from .certificate import (
    certify_flow as certify_flow,
)
from .certificate import (
    certify_transform as certify_transform,
)
from .fields import (
    folded_cell_count as folded_cell_count,
)
from .fields import (
    folding_fraction as folding_fraction,
)
from .fields import (
    learn2reg_sd_log_jacobian as learn2reg_sd_log_jacobian,
)
from .fields import (
    mean_displacement as mean_displacement,
)
from .fields import (
    sd_log_jacobian as sd_log_jacobian,
)
from .labels import label_metrics as label_metrics
from .labels import landmark_metrics as landmark_metrics
from .monai_metrics import (
    FoldedCellCountMetric as FoldedCellCountMetric,
)
from .monai_metrics import (
    FoldingFractionMetric as FoldingFractionMetric,
)
from .monai_metrics import (
    MeanDisplacementMetric as MeanDisplacementMetric,
)
from .monai_metrics import (
    SDLogJacobianMetric as SDLogJacobianMetric,
)
from .verdict import Finding as Finding
from .verdict import Grade as Grade
from .verdict import Verdict as Verdict
