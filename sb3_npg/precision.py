"""Whether single-precision products are computed in TF32, by torch's switches from before and after version 2.9."""

import torch as th


def products_in_tf32() -> bool:
    """Tell whether torch may compute matrix products in TF32 on a GPU."""
    # The older switch raises once the newer one has been used.
    precision = getattr(th.backends.cuda.matmul, "fp32_precision", None)
    return th.get_float32_matmul_precision() != "highest" if precision is None else precision == "tf32"


def convolutions_in_tf32() -> bool:
    """Tell whether torch may compute convolutions in TF32 on a GPU."""
    convolutions = getattr(th.backends.cudnn, "conv", None)
    return bool(th.backends.cudnn.allow_tf32 if convolutions is None else convolutions.fp32_precision == "tf32")
