import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from hwsearch.architecture import Architecture, Layer, parse_precisions, uniform_layers
from hwsearch.errors import ArchitectureError
from hwsearch.precision import Precision

precisions = st.sampled_from(list(Precision))
layers = st.builds(
    lambda kv, group, ffn, a, f: Layer(kv * group, kv, ffn, a, f),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 512),
    precisions,
    precisions,
)
architectures = st.builds(
    Architecture,
    block=st.sampled_from(["encoder", "decoder"]),
    width=st.integers(1, 512),
    head_dim=st.integers(1, 64),
    layers=st.lists(layers, min_size=1, max_size=6).map(tuple),
    gated_ffn=st.booleans(),
    vocab=st.integers(1, 1000),
    head=st.sampled_from(["none", "lm", "classify", "span"]),
)


@given(architectures)
def test_json_gives_the_same_architecture_back(architecture: Architecture) -> None:
    plain = msgspec.json.decode(msgspec.json.encode(architecture.to_json()))
    assert Architecture.from_json(plain) == architecture
    assert plain["id"] == architecture.id
    assert hash(Architecture.from_json(plain)) == hash(architecture)


@given(architectures, architectures)
def test_different_architectures_have_different_ids(one: Architecture, other: Architecture) -> None:
    assert (one.id == other.id) == (one == other)


def test_parameters_are_those_of_the_transformers_model() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from hwsearch.distill.families import architecture_of

    for tied in (True, False):
        config = LlamaConfig(
            vocab_size=100,
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=80,
            tie_word_embeddings=tied,
        )
        model = LlamaForCausalLM(config)
        assert architecture_of(config, Precision.FP32).parameters == model.num_parameters()


def test_precision_is_written_in_runs() -> None:
    plan = parse_precisions("int8*2,int8/fp16,fp16", 4)
    architecture = Architecture("decoder", 64, 32, uniform_layers(4, 2, 1, 64, plan), vocab=10, head="lm")
    assert architecture.precision_text == "int8*2,int8/fp16,fp16"
    assert architecture.uniform
    assert parse_precisions("int8", 3) == ((Precision.INT8, Precision.INT8),) * 3


@pytest.mark.parametrize("text", ["int8*2", "int7", "int8*x", "int8*3,fp16*2", "int8*-1,fp16*5", "int8*0,fp16*4", ""])
def test_a_plan_that_does_not_fit_is_refused(text: str) -> None:
    with pytest.raises(ArchitectureError) as error:
        parse_precisions(text, 4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", 0),
        ("width", "wide"),
        ("layers", []),
        ("block", "sideways"),
        ("vocab", -1),
        ("colour", "red"),
        ("head_precision", "int7"),
    ],
)
def test_broken_json_is_refused(name: str, value: object) -> None:
    plain = Architecture(
        "decoder", 64, 32, (Layer(2, 1, 64, Precision.INT8, Precision.FP16),), vocab=10, head="lm"
    ).to_json()
    plain[name] = value
    with pytest.raises(ArchitectureError):
        Architecture.from_json(plain)


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ArchitectureError, match="divide"):
        Architecture("decoder", 64, 32, (Layer(3, 2, 64, Precision.FP16, Precision.FP16),))
    with pytest.raises(ArchitectureError, match="vocabulary"):
        Architecture("decoder", 64, 32, (Layer(2, 2, 64, Precision.FP16, Precision.FP16),), head="lm")


def test_size_counts_every_part_in_its_precision() -> None:
    plan = [(Precision.INT8, Precision.FP16)]
    a = Architecture(
        "decoder",
        64,
        32,
        uniform_layers(1, 2, 2, 128, plan),
        False,
        vocab=100,
        head="lm",
        embedding_precision=Precision.FP16,
    )
    attention, feed_forward, embedding = 4 * 64 * 64, 2 * 64 * 128, 100 * 64
    assert a.size_mib * 2**20 == attention + 2 * feed_forward + 2 * embedding
    rounded = replace(a, head_precision=Precision.INT8)  # stands beside the embedding that it is made from
    assert rounded.size_mib * 2**20 == attention + 2 * feed_forward + 3 * embedding
