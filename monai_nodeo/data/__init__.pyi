from .dataset import FailedRow as FailedRow
from .dataset import PairDataset as PairDataset
from .examples import ExamplePair as ExamplePair
from .examples import example_pair as example_pair
from .image import as_image as as_image
from .lists import (
    DataListError as DataListError,
)
from .lists import (
    RowError as RowError,
)
from .lists import (
    group as group,
)
from .lists import (
    load_datalist as load_datalist,
)
from .lists import (
    single_pair as single_pair,
)
from .load import load_pair as load_pair
from .matched_pair import MatchedPair as MatchedPair
from .matched_pair import match as match
from .pair import Pair as Pair
from .pair import PairError as PairError
from .pair import Scan as Scan
from .series import Series as Series
from .series import open_series as open_series
from .start import Start as Start
from .start import find_start as find_start
