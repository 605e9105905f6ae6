"""`run.py convert`: published weights become one file, and what cannot is explained."""

import pytest
import torch
from cascadevsr.models.checkpoints import load_state, save_state
from cascadevsr.runner import cli, convert
from cascadevsr.runner.errors import RunnerError
from cascadevsr.tests.host.mgld_release import write_checkpoints
from cascadevsr.tests.host.uav_release import recorded, write_release


def _run(*arguments):
    return convert.main(cli.parser().parse_args(["convert", *map(str, arguments)]), None)


def test_a_released_folder_becomes_one_file(tmp_path, capsys):
    folder = write_release(recorded("pipeline_noguidance"), tmp_path / "release", text=False)
    assert _run(folder, tmp_path / "out.safetensors") == 0
    assert "non-commercial" in capsys.readouterr().out
    state, metadata = load_state(tmp_path / "out.safetensors")
    assert metadata["source"] == "release" and "unet_config" in metadata and "vae_video_config" in metadata
    unet = torch.load(folder / "unet" / "unet_video.bin", weights_only=True)
    assert all(torch.equal(state[f"unet.{key}"], value) for key, value in unet.items())


def test_two_lightning_checkpoints_become_one_file(tmp_path, capsys):
    folder = write_checkpoints(tmp_path / "mgld")
    assert _run(folder, tmp_path / "out.safetensors") == 0
    said = capsys.readouterr().out
    assert "S-Lab" in said and "sequence decoder" in said
    state, metadata = load_state(tmp_path / "out.safetensors")
    assert metadata["architecture"] == "mgld_vsr" and state["empty_prompt"].shape == (1, 77, 32)
    assert {key.split(".")[0] for key in state} == {
        "unet", "structure", "first_stage", "sequence", "empty_prompt",
    }  # fmt: skip
    assert not [key for key in state if "loss" in key or "flownet" in key or "beta" in key.split(".")[0]]
    assert _run(folder / "mgldvsr_unet.ckpt", tmp_path / "half.safetensors", "--half") == 0
    halved = load_state(tmp_path / "half.safetensors")[0]
    assert halved.keys() == state.keys() and halved["unet.out.2.weight"].dtype == torch.float16
    assert halved["sequence.decoder.conv_in.weight"].dtype == torch.float32


def test_the_flow_network_becomes_a_file_that_is_still_one(tmp_path, capsys):
    from cascadevsr.models.motion.raft import build_raft, is_raft, raft_state

    state = {f"module.{key}": value for key, value in build_raft().state_dict().items()}
    torch.save(state, tmp_path / "raft-things.pth")
    assert _run(tmp_path / "raft-things.pth", tmp_path / "raft.safetensors") == 0
    converted, metadata = load_state(tmp_path / "raft.safetensors")
    assert is_raft(raft_state(converted)) and metadata["architecture"] == "raft"
    build_raft().load_state_dict(converted)  # so that the host's own loader takes it too
    assert "BSD" in capsys.readouterr().out


def test_what_cannot_be_converted_is_explained(tmp_path):
    save_state(tmp_path / "other.safetensors", {"a": torch.zeros(2)})
    (tmp_path / "half" / "vae").mkdir(parents=True)
    for source, target, words in (
        (tmp_path / "nothing", "out.safetensors", "source must exist"),
        (
            tmp_path / "other.safetensors",
            "out.safetensors",
            "MGLD-VSR: .*Upscale-A-Video: the UNet, .*RAFT.*got other",
        ),
        (tmp_path / "other.safetensors", "out.bin", r"must be named \*\.safetensors"),
        (tmp_path, "out.safetensors", "must be published weights"),
        (tmp_path / "half", "out.safetensors", "without weights in unet"),
    ):
        with pytest.raises(RunnerError, match=words):
            _run(source, tmp_path / target)
    assert not (tmp_path / "out.safetensors").exists()
