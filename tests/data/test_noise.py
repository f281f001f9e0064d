"""The noise of a scan by the scan alone, against noise that is known."""

import numpy as np
import pytest

from dyefreenet.config import PhantomConfig
from dyefreenet.data.noise import global_noise
from dyefreenet.data.phantom import make_patient


@pytest.mark.parametrize("sd", [5.0, 15.0, 40.0])
def test_known_noise_in_soft_tissue_is_found_whatever_lies_beside(sd):
    rng = np.random.default_rng(0)
    hu = np.full((6, 128, 128), -1000.0)
    hu[:, 20:-20, 20:-20] = 50 + rng.normal(0, sd, (6, 88, 88))
    hu[:, 60:70, 60:70] += 400  # bone, whose edge is no noise
    assert global_noise(hu.astype(np.int16), (0.8, 0.8)) == pytest.approx(sd, rel=0.1)


def test_air_alone_tells_nothing():
    assert global_noise(np.full((4, 64, 64), -1000, np.int16), (1.0, 1.0)) is None


def test_a_noisier_phantom_is_found_noisier():
    found = []
    for noise in (6.0, 14.0, 30.0):
        config = PhantomConfig(slices=4, noise_hu=(noise, noise), middle_mm=(200.0, 300.0))
        plain = make_patient(config, 0).phases["plain"]
        found.append(global_noise(plain.hu, plain.spacing[1:]))
    assert found == sorted(found) and found[2] > 2.5 * found[0]
    assert found[1] == pytest.approx(14.0, rel=0.35)
