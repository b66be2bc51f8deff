"""What every codec does alike, whatever it keeps."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from stillroom.codecs import CODECS, Codec, parse_codec
from stillroom.errors import UserError
from stillroom.types import Row, View

TEXTS = ("float16", "int8", "logits8", "stochastic:0.1", "stochastic:1.0", "stochastic:10.0")
VIEW = View(x0=0, y0=0, x1=8, y1=8)
SHAPE = (3, 6, 10)


def rows(count: int, first: int = 0) -> list[Row]:
    return [Row(key=f"p{i}", view=VIEW) for i in range(first, first + count)]


def features(count: int, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Tensor:
    """Many small values and few large ones, each channel around another value."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.arange(shape[0])[:, None, None] - 1.0
    return torch.randn((count, *shape), generator=generator).pow(3) + centres


@pytest.fixture(params=TEXTS)
def codec(request: pytest.FixtureRequest) -> Codec:
    return parse_codec(request.param)


@pytest.fixture
def fitted(codec: Codec) -> dict[str, Tensor]:
    def batches() -> Iterator[Tensor]:
        yield features(5, seed=1)
        yield features(2, seed=2)

    return codec.fit(batches()) if codec.needs_fit else {}


def test_every_codec_is_among_these():
    assert {text.partition(":")[0] for text in TEXTS} == CODECS.keys()


def test_the_text_form_is_the_whole_configuration(codec: Codec):
    assert isinstance(codec, Codec)
    assert parse_codec(codec.text) == codec and str(codec) == codec.text
    assert codec.text in TEXTS


@pytest.mark.parametrize(
    "text",
    ["", "float17", "float16:1", "Float16", "int8:7", "logits8:8", "stochastic", "stochastic:x"],
)
def test_other_texts_are_refused(text: str):
    with pytest.raises(UserError):
        parse_codec(text)


@pytest.mark.parametrize("error", ["0.05", "-1", "nan", "inf", "1e6"])
def test_other_errors_of_stochastic_rounding_are_refused(error: str):
    with pytest.raises(UserError, match=r"0\.1 to 100"):
        parse_codec(f"stochastic:{error}")


def test_the_declared_parts_are_those_that_are_encoded(codec: Codec, fitted):
    for shape in (SHAPE, (1, 5, 7)):
        if codec.needs_fit:
            fitted = codec.fit([features(3, shape)])
        encoded = codec.encode(features(2, shape), rows(2), fitted)
        declared = codec.parts(shape)
        assert encoded.keys() == declared.keys()
        for name, (dtype, part_shape) in declared.items():
            assert encoded[name].numpy().dtype == np.dtype(dtype)
            assert encoded[name].shape == (2, *part_shape)
        decoded = codec.decode(encoded, fitted)
        assert decoded.dtype == torch.float32 and decoded.shape == (2, *shape)


def test_no_value_is_further_off_than_the_stated_bound(codec: Codec, fitted):
    target = features(40, seed=3)
    bound = codec.error_bound(target, fitted)
    error = (codec.decode(codec.encode(target, rows(40), fitted), fitted) - target).abs()
    assert bound.shape == target.shape
    assert torch.all(error <= bound)
    assert float((error / bound).max()) > 0.9  # and the bound is no larger than it has to be


def test_what_is_promised_of_a_shard_is_kept_on_rows_like_those_of_the_fit(codec: Codec):
    target = features(400, seed=6)
    fitted = codec.fit([features(400, seed=1)])
    promised = codec.promised_error(target, fitted)
    assert (promised is not None) == codec.is_noisy
    if promised is not None:
        off = codec.decode(codec.encode(target, rows(400), fitted), fitted) - target
        found = off.flatten(1).square().mean(1)
        assert promised.shape == (400,)
        assert float(found.mean()) == pytest.approx(float(promised.mean()), rel=0.1)


def test_what_is_kept_of_a_row_knows_no_batch(codec: Codec, fitted):
    target, names = features(6, seed=4), rows(6)
    whole = codec.encode(target, names, fitted)
    for start, stop in ((0, 1), (1, 4), (4, 6)):
        piece = codec.encode(target[start:stop], names[start:stop], fitted)
        for name, value in piece.items():
            assert torch.equal(value, whole[name][start:stop])
    decoded = codec.decode(whole, fitted)
    alone = codec.decode({name: value[3:4] for name, value in whole.items()}, fitted)
    assert torch.equal(alone[0], decoded[3])


def test_zeros_stay_near_zero(codec: Codec, fitted):
    target = torch.zeros((2, *SHAPE))
    decoded = codec.decode(codec.encode(target, rows(2), fitted), fitted)
    assert torch.all(decoded.abs() <= codec.error_bound(target, fitted))


def test_equal_values_of_other_rows_are_drawn_anew_where_a_codec_draws(codec: Codec, fitted):
    target = features(1, seed=5).expand(2, *SHAPE).clone()
    decoded = codec.decode(codec.encode(target, rows(2), fitted), fitted)
    assert torch.equal(decoded[0], decoded[1]) != codec.is_noisy
