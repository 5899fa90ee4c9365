"""Products with a Fisher that is a chain of layers."""

import pytest
import torch as th

from sb3_npg.linalg import FisherChain
from tests.linalg.chains import CHAINS, make_chain


def repeated(chain: FisherChain) -> FisherChain:
    """Return the chain with each row twice, of which the mean is the same."""

    def twice(tensor):
        return None if tensor is None else tensor.repeat(2, 1)

    layers = tuple(layer._replace(inputs=twice(layer.inputs), slope=twice(layer.slope)) for layer in chain.layers)
    return chain._replace(layers=layers, diagonal=twice(chain.diagonal))


@pytest.mark.parametrize("n_rows", [1, 2, 5])
@pytest.mark.parametrize("name", CHAINS)
def test_product_is_a_mean_over_rows_and_leaves_its_argument(name, n_rows):
    chain = make_chain(n_rows=n_rows, **CHAINS[name])
    vector = th.linspace(-1.0, 1.0, chain.size, dtype=th.float64)
    before = vector.clone()
    product = chain.product(vector)
    assert th.equal(vector, before)
    th.testing.assert_close(product, repeated(chain).product(vector), rtol=1e-12, atol=1e-14)
