"""Which columns of F_out's root are propagated backwards to the layers."""

from typing import Literal

import torch as th

#: All of F_out's root, one random sum of them, or the taken action's score.
Columns = Literal["exact", "propagated", "sampled"]


def chosen_columns(root: th.Tensor, outputs: th.Tensor | None, columns: Columns, generator: th.Generator) -> th.Tensor:
    """
    Drop the columns that no layer affects, such as those of a free log_std, and combine the others if asked to.

    Martens, Sutskever & Swersky (2012), Estimating the Hessian by Back-propagating Curvature.

    :param root: B with B Bᵀ = F_out, shape (n, k, r)
    :param outputs: which of the k outputs depend on a layer, shape (k,), boolean; None for all
    :param columns: "exact" leaves them as they are; "propagated" sums them with random signs ±1
    :param generator: draws the signs
    :return: shape (n, k, c)
    """
    if outputs is not None:
        root = root[:, :, (root[:, outputs] != 0).any(dim=0).any(dim=0)]
    if columns == "propagated":
        signs = th.randint(2, (len(root), root.shape[2], 1), generator=generator).to(root) * 2 - 1
        root = root @ signs
    return root
