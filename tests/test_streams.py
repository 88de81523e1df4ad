"""Random streams: one per name, stable across releases."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optbench.streams import generator, stream_seed

seeds = st.integers(0, 2**63 - 1)
names = st.tuples(seeds, st.none() | seeds, st.text(max_size=20))


def draws(*name: object) -> list[int]:
    return torch.randint(0, 2**31, (4,), generator=generator(*name)).tolist()  # type: ignore[arg-type]


def test_streams_are_stable_across_releases() -> None:
    # Earlier runs can be repeated only if these values do not change.
    assert stream_seed(0, None, "validation split") == 2110429483106290913
    assert stream_seed(7, 3, "permutation 0") == 4141877632141574817


def test_equal_names_give_equal_draws_and_different_names_different_ones() -> None:
    triples = list(itertools.product((0, 1), (None, 0, 1), ("a", "b")))
    streams = [tuple(draws(*triple)) for triple in triples]
    assert len(set(streams)) == len(triples)
    assert [tuple(draws(*triple)) for triple in triples] == streams


def test_the_parts_of_a_name_are_separated() -> None:
    assert stream_seed(1, 23, "x") != stream_seed(12, 3, "x")
    assert stream_seed(1, 2, "3x") != stream_seed(1, 23, "x")
    assert stream_seed(1, None, "x") != stream_seed(1, 0, "x")


@given(names, names)
@settings(max_examples=40, deadline=None)
def test_a_seed_has_63_bits_and_is_unique_to_its_name(
    one: tuple[int, int | None, str], other: tuple[int, int | None, str]
) -> None:
    assert 0 <= stream_seed(*one) < 2**63
    assert (stream_seed(*one) == stream_seed(*other)) == (one == other)
    assert generator(*one).initial_seed() == stream_seed(*one)


def test_the_global_generator_is_neither_used_nor_changed() -> None:
    before = torch.random.get_rng_state()
    first = draws(0, 0, "x")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert draws(0, 0, "x") == first
