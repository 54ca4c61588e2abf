"""Shapes in signatures: `Float[Tensor, "B D"]`, one letter per axis, explained in each file's legend.

If jaxtyping is installed (as for the tests), these are its types, and the tests check every call. Otherwise they are the
plain array types: a training machine needs nothing more.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool as Bool
    from jaxtyping import Float as Float
    from jaxtyping import Float32 as Float32
    from jaxtyping import Int as Int
    from jaxtyping import Int32 as Int32
    from jaxtyping import UInt8 as UInt8
else:
    try:
        from jaxtyping import Bool, Float, Float32, Int, Int32, UInt8
    except ImportError:

        class _Plain:
            """`_Plain[array type, "shape"]` is the array type."""

            def __class_getitem__(cls, item: Any) -> Any:
                return item[0]

        Bool = Float = Float32 = Int = Int32 = UInt8 = _Plain

__all__ = ["Bool", "Float", "Float32", "Int", "Int32", "UInt8"]
