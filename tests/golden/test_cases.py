"""The golden readers themselves, on small cases written here in both formats, and the weight recipe."""

import json

import pytest
import torch
from cascadevsr.tests.golden import cases
from safetensors.torch import save_file

KEYS = cases.HERE.parent.parent.parent / "shared" / "keys" / "upscale_a_video_raft.json"


def write(folder, name, meta, tensors):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(meta))
    if tensors:
        save_file(tensors, folder / f"{name}.safetensors")


@pytest.fixture
def golden(tmp_path, monkeypatch):
    """Two families, one in each format, as $VSR_GOLDEN_DIR."""
    quantised = torch.tensor([-3, 0, 127], dtype=torch.int8)
    scaled = {"w.conv": quantised, "s.conv": torch.tensor(0.25), "w.plain": torch.ones(2)}
    write(
        tmp_path / "dotted",
        "net",
        {"name": "net"},
        {"in.x": torch.ones(2), "out.y": torch.full((2,), 3.0), **scaled},
    )
    write(tmp_path / "dotted", "user", {"name": "user", "weights_from": {"a": "net.safetensors"}}, {})
    write(tmp_path / "dotted", "plan", {"name": "plan", "tolerance": "exact"}, {})
    meta = {"kind": "block", "tolerance": {"rtol": 1e-5, "atol": 1e-5}, "weight_sums": {"k.weight": 2.0}}
    tensors = {"in/x": torch.ones(2), "out/y": torch.full((2,), 3.0), "mid/z": torch.zeros(1)}
    write(tmp_path / "slashed", "first", meta, tensors | {"weights/k.weight": torch.ones(2).half()})
    monkeypatch.setenv(cases.ENVIRONMENT, str(tmp_path))
    return {(case.family, case.name): case for case in cases.find_cases()}


def test_both_formats_are_found_and_read(golden):
    ours = {key for key in golden if key[0] in ("dotted", "slashed")}
    assert ours == {("dotted", "net"), ("dotted", "user"), ("dotted", "plan"), ("slashed", "first")}
    dotted, slashed = golden["dotted", "net"], golden["slashed", "first"]
    assert (dotted.kind, slashed.kind) == ("net", "block")
    for case in (dotted, slashed):
        assert case.group("in").keys() == {"x"} and case.group("out").keys() == {"y"}
        cases.compare(case, {"y": torch.full((2,), 3.0)})
    assert dotted.weights()["conv"].tolist() == [-0.75, 0.0, 31.75] and dotted.weights()["plain"].sum() == 2
    assert golden["dotted", "user"].weights("a").keys() == {"conv", "plain"}
    assert slashed.weights()["k.weight"].dtype == torch.float32 and slashed.group("mid").keys() == {"z"}


def test_one_family_folder_and_a_missing_folder(golden, tmp_path, monkeypatch):
    assert len(cases.cases_under(tmp_path / "slashed")) == 1 and cases.cases_under(tmp_path / "none") == []
    monkeypatch.setenv(cases.ENVIRONMENT, str(tmp_path / "none"))
    with pytest.raises(ValueError, match="got none in"):
        cases.find_cases()


@pytest.mark.parametrize("key", [("dotted", "net"), ("slashed", "first")])
def test_wrong_results_fail_with_the_name_of_the_output(golden, key):
    case = golden[key]
    cases.compare(case, {"y": torch.full((2,), 3.0 + 2e-5)})
    wrong = {
        "off": {"y": torch.tensor([3.0, 3.001])},
        "nan": {"y": torch.tensor([3.0, float("nan")])},
        "shape": {"y": torch.full((1, 2), 3.0)},
        "missing": {},
    }
    for produced in wrong.values():
        with pytest.raises(AssertionError, match=f"{key[0]}/{key[1]}: y: "):
            cases.compare(case, produced)


def test_a_case_without_outputs_cannot_pass(golden):
    with pytest.raises(AssertionError, match="no recorded output"):
        cases.compare(golden["dotted", "plan"], {})


def test_weight_sums(golden):
    case = golden["slashed", "first"]
    cases.check_weight_sums(case, case.weights())
    for wrong in ({}, {"k.weight": torch.tensor([1.0, 1.002])}):
        with pytest.raises(AssertionError, match="k.weight"):
            cases.check_weight_sums(case, wrong)


@pytest.mark.parametrize(
    ("statement", "output", "dtype", "expected"),
    [
        (None, "y", torch.float32, cases.Tolerance(absmax=1e-4)),
        ("exact", "y", torch.float32, cases.Tolerance()),
        ("rtol 1e-12", "y", torch.float64, cases.Tolerance(rtol=1e-12)),
        ("timesteps exact; arrays rtol 1e-4 (a note)", "t", torch.int64, cases.Tolerance()),
        ("timesteps exact; arrays rtol 1e-4 (a note)", "y", torch.float32, cases.Tolerance(rtol=1e-4)),
        ("flows rtol 1e-3 of absmax; masks may differ on <0.2% of pixels", "flow", torch.float32,
         cases.Tolerance(absmax=1e-3)),
        ("flows rtol 1e-3 of absmax; masks may differ on <0.2% of pixels", "fwd_occ", torch.float32,
         cases.Tolerance(fraction=0.002)),
        ("floats: max abs error <= 1e-4*absmax (a note)", "y", torch.float32, cases.Tolerance(absmax=1e-4)),
        ({"rtol": 0.1, "atol": 0.2, "max_mismatch_fraction": 0.3, "why": "x"}, "y", torch.float32,
         cases.Tolerance(0.1, 0.2, fraction=0.3)),
    ],
)  # fmt: skip
def test_stated_tolerances_are_understood(statement, output, dtype, expected):
    assert cases.parse_tolerance(statement, output, torch.zeros(1, dtype=dtype)) == expected


def test_a_share_of_elements_may_differ():
    statement = "at least 99.8% of elements within 1e-4*absmax; note; u8 within 1 for 99.8% of pixels"
    floats = cases.parse_tolerance(statement, "y", torch.zeros(1))
    assert floats.absmax == 1e-4 and floats.fraction == pytest.approx(0.002)
    pixels = cases.parse_tolerance(statement, "u8", torch.zeros(1, dtype=torch.uint8))
    assert pixels.atol == 1 and pixels.fraction == pytest.approx(0.002)
    with pytest.raises(ValueError, match="must be understood"):
        cases.parse_tolerance("roughly right", "y", torch.zeros(1))


def test_recipe_gives_the_recorded_sums():
    """Sums as the recorded cases raft_a and vaevideo_b_recipe state them."""
    weights = cases.recipe_weights({"fnet.conv1.weight": (64, 3, 7, 7), "fnet.conv1.bias": (64,)}, 3001, 1.3)
    assert float(weights["fnet.conv1.weight"].double().sum()) == pytest.approx(0.833812, abs=1e-4)
    assert float(weights["fnet.conv1.bias"].double().sum()) == pytest.approx(0.520838, abs=1e-4)
    norm = "encoder.down_blocks.0.resnets.0.norm1.weight"
    rounded = cases.recipe_weights({norm: (32,)}, 1203, 0.1, round_fp16=True)[norm]
    assert float(rounded.double().sum()) == pytest.approx(32.603271, abs=1e-6)
    assert torch.equal(rounded, rounded.half().float())


def test_recipe_rules():
    shapes = {
        "a.running_mean": (8,),
        "a.running_var": (8,),
        "a.num_batches_tracked": (),
        "b.rotary_emb.freqs": (16,),
        "l.0.downsample.1.weight": (8,),
        "l.0.norm3.weight": (8,),
        "flow_head.conv2.weight": (2, 4, 3, 3),
        "class_embedding.weight": (4, 4),
        "relative_attention_bias.weight": (4, 4),
        "conv.weight": (4, 6, 3, 3),
    }
    made = cases.recipe_weights(shapes, 5, 1.0)
    assert {key: tuple(value.shape) for key, value in made.items()} == shapes
    assert made["a.running_var"].min() >= 1 and made["a.num_batches_tracked"] == 0
    assert made["a.running_mean"].abs().max() < 0.5 < made["class_embedding.weight"].abs().max()
    assert torch.equal(made["l.0.downsample.1.weight"], made["l.0.norm3.weight"])
    assert made["b.rotary_emb.freqs"][[0, 8]].tolist() == pytest.approx([1.0, 0.01])
    assert made["flow_head.conv2.weight"].std() < 0.04 and 0.08 < made["conv.weight"].std() < 0.2


def test_recipe_makes_a_whole_recorded_network():
    """Every recorded weight sum of one network, where its list of keys and its case are at hand."""
    found = {case.name: case for case in cases.find_cases()}
    if not KEYS.is_file() or "raft_a" not in found:
        pytest.skip("the recorded network raft_a and its list of keys are not here")
    listed = json.loads(KEYS.read_text())
    shapes = {key.removeprefix("module."): entry[0] for key, entry in listed.items()}
    meta = found["raft_a"].meta
    weights = cases.recipe_weights(shapes, meta["recipe_seed"], meta["recipe_gain"], meta["recipe_round_fp16"])
    cases.check_weight_sums(found["raft_a"], weights)
