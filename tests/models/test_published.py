"""The settings of files on the hub give as many parameters as the hub counts in their weights."""

import pytest

from jaxr1.models.families.table import FAMILIES
from jaxr1.models.vlm import describe
from jaxr1.nn.params import count


def decoder(width, mlp, layers, heads, kv_heads, vocab, **more) -> dict:
    """The settings of a decoder, by the names that all families share."""
    settings = dict(
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocab,
        rms_norm_eps=1e-6,
        hidden_act="silu",
        use_sliding_window=False,
    )
    return settings | more


def qwen2_tower(**more) -> dict:
    """What the towers of Qwen2-VL and Qwen2.5-VL share."""
    settings = dict(
        depth=32,
        num_heads=16,
        in_chans=3,
        patch_size=14,
        spatial_merge_size=2,
        temporal_patch_size=2,
    )
    return settings | more


def with_qwen2_tower(family, text, tower, tied) -> dict:
    """The flat config.json of these families."""
    return text | dict(
        model_type=family,
        tie_word_embeddings=tied,
        rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
        vision_config=tower,
    )


def qwen2_vl(text, tied) -> dict:
    tower = qwen2_tower(embed_dim=1280, mlp_ratio=4, hidden_size=text["hidden_size"])
    return with_qwen2_tower("qwen2_vl", text, tower, tied)


def qwen2_5_vl(text, tied) -> dict:
    tower = qwen2_tower(
        hidden_size=1280,
        intermediate_size=3420,
        out_hidden_size=text["hidden_size"],
        window_size=112,
        hidden_act="silu",
        fullatt_block_indexes=[7, 15, 23, 31],
        tokens_per_second=2,
    )
    return with_qwen2_tower("qwen2_5_vl", text, tower, tied)


def qwen3_tower(depth, width, mlp, deep) -> dict:
    return dict(
        depth=depth,
        hidden_size=width,
        intermediate_size=mlp,
        deepstack_visual_indexes=deep,
        num_heads=16,
        in_channels=3,
        patch_size=16,
        spatial_merge_size=2,
        temporal_patch_size=2,
        num_position_embeddings=2304,
        hidden_act="gelu_pytorch_tanh",
    )


def qwen3_vl(tower, text, tied) -> dict:
    rope = {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}
    return dict(
        model_type="qwen3_vl",
        tie_word_embeddings=tied,
        text_config=text | dict(head_dim=128, rope_scaling=rope),
        vision_config=tower | dict(out_hidden_size=text["hidden_size"]),
    )


def intern_tower(width, mlp, layers, heads, norm, **more) -> dict:
    settings = dict(
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        norm_type=norm,
        image_size=448,
        patch_size=14,
        hidden_act="gelu",
    )
    return settings | more


INTERN_300M = intern_tower(1024, 4096, 24, 16, "layer_norm", qkv_bias=True, qk_normalization=False)
INTERN_6B = intern_tower(3200, 12800, 45, 25, "rms_norm", qkv_bias=False, qk_normalization=True)


def internvl(tower, kind, text) -> dict:
    rope = {"type": "dynamic", "factor": 2.0}
    return dict(
        model_type="internvl_chat",
        downsample_ratio=0.5,
        force_image_size=448,
        ps_version="v2",
        select_layer=-1,
        vision_config=tower,
        llm_config=text | dict(model_type=kind, tie_word_embeddings=False, rope_scaling=rope),
    )


PUBLISHED = {
    "Qwen2-VL-2B": (
        2_208_985_600,
        qwen2_vl(decoder(1536, 8960, 28, 12, 2, 151936), tied=True),
    ),
    "Qwen2-VL-7B": (
        8_291_375_616,
        qwen2_vl(decoder(3584, 18944, 28, 28, 4, 152064), tied=False),
    ),
    "Qwen2.5-VL-3B": (
        3_754_622_976,
        qwen2_5_vl(decoder(2048, 11008, 36, 16, 2, 151936), tied=True),
    ),
    "Qwen2.5-VL-7B": (
        8_292_166_656,
        qwen2_5_vl(decoder(3584, 18944, 28, 28, 4, 152064), tied=False),
    ),
    "Qwen3-VL-4B": (
        4_437_815_808,
        qwen3_vl(
            qwen3_tower(24, 1024, 4096, [5, 11, 17]),
            decoder(2560, 9728, 36, 32, 8, 151936),
            tied=True,
        ),
    ),
    "Qwen3-VL-8B": (
        8_767_123_696,
        qwen3_vl(
            qwen3_tower(27, 1152, 4304, [8, 16, 24]),
            decoder(4096, 12288, 36, 32, 8, 151936),
            tied=False,
        ),
    ),
    "InternVL2_5-8B": (
        8_075_365_376,
        internvl(INTERN_300M, "internlm2", decoder(4096, 14336, 32, 32, 8, 92553, bias=False)),
    ),
    "InternVL2_5-38B": (
        38_388_164_992,
        internvl(INTERN_6B, "qwen2", decoder(5120, 27648, 64, 40, 8, 151674)),
    ),
    "InternVL3-8B": (
        7_944_373_760,
        internvl(INTERN_300M, "qwen2", decoder(3584, 18944, 28, 28, 4, 151674)),
    ),
    "InternVL3_5-8B": (
        8_528_318_464,
        internvl(INTERN_300M, "qwen3", decoder(4096, 12288, 36, 32, 8, 151936, head_dim=128)),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_the_hub_counts(name):
    total, raw = PUBLISHED[name]
    model = describe(raw)
    for names in FAMILIES[model.family].layouts:
        assert count(model.table(names)) == total
