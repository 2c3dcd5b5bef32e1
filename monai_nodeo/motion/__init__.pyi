from .correction import correct_motion as correct_motion
from .result import Motion as Motion
from .rigid import RigidSearch as RigidSearch
from .rigid import resample_rigid as resample_rigid
