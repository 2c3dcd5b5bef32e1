from .build import build_template as build_template
from .result import Template as Template
