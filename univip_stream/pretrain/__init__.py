"""Pre-training: recipes, the training loop, and loading what it saved."""

from univip_stream.pretrain.asked import Interrupted
from univip_stream.pretrain.config import OptimConfig, PretrainConfig
from univip_stream.pretrain.load import load_backbone
from univip_stream.pretrain.recipes import RECIPES
from univip_stream.pretrain.train import pretrain

__all__ = ["RECIPES", "Interrupted", "OptimConfig", "PretrainConfig", "load_backbone", "pretrain"]
