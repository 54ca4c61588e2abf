"""Self-supervised methods: a new one is a `Method` with an entry in `METHODS`, or a user's own class, `module:Class`."""

from univip_stream.methods.base import Bootstrap as Bootstrap
from univip_stream.methods.base import Encoder as Encoder
from univip_stream.methods.base import Method as Method
from univip_stream.methods.base import MethodConfig as MethodConfig
from univip_stream.methods.base import feature_std as feature_std
from univip_stream.methods.byol import BYOL as BYOL
from univip_stream.methods.registry import METHODS as METHODS
from univip_stream.methods.registry import build_method as build_method
from univip_stream.methods.registry import build_plan as build_plan
from univip_stream.methods.registry import method_class as method_class
from univip_stream.methods.scenes import BoxPlan as BoxPlan
from univip_stream.methods.scenes import ScenePlan as ScenePlan
from univip_stream.methods.univip import UniVIP as UniVIP
from univip_stream.methods.univip import UniVIPConfig as UniVIPConfig
