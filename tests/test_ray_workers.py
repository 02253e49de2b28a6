"""Ray: the bands of a local cluster of two workers are those of one engine, also when one of them is killed."""

import logging
import os
import re
import signal
import sys

import numpy as np
import pytest
import rasterio
import torch

from visionapps.errors import ConfigError, DataError
from visionapps.inference.bundle import Bundle
from visionapps.inference.engine import Scene
from visionapps.inference.plan import plan
from visionapps.inference.products import Products
from visionapps.inference.ray_workers import RayWorkers
from visionapps.inference.shards import split
from visionapps.inference.tiling import Tiling
from visionapps.inference.work import Computing, Part, Reading, Task
from visionapps.models import unet
from visionapps.structures import InputSpec, LabelSpace

NOBODY = Computing(())


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r'ray is not installed; pip install "visionapps\[ray\]"'):
        RayWorkers(NOBODY, Reading(InputSpec()), workers=2)


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=100_000_000,
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """How to compute and read, and a part."""
    folder = tmp_path_factory.mktemp("ray")
    torch.manual_seed(0)
    model = unet("test_efficientnet", 4, channels=(8, 8, 8, 8, 8))  # timm's own fake network, in every process
    Bundle(model, LabelSpace.named(["a", "b", "c", "d"]), 32).save(folder / "bundle")
    image = np.random.default_rng(0).integers(0, 256, (3, 600, 150), dtype=np.uint8)
    options = {"driver": "GTiff", "count": 3, "dtype": "uint8", "crs": "EPSG:32735"}
    place = rasterio.transform.from_origin(300000, 7000000, 1, 1)
    with rasterio.open(folder / "r.tif", "w", height=600, width=150, transform=place, **options) as data:
        data.write(image)
    computing = Computing(
        (folder / "bundle",),
        tiling=Tiling(tile=32, overlap=8, batch=5),
        products=Products(("probabilities",)),
        device="cpu",
        threads=1,
    )
    layout = plan((600, 150), tile=32, overlap=8)
    return computing, Reading(model.spec), Part(str(folder / "r.tif"), 5, layout, range(len(layout.rows.starts)))


@pytest.fixture(scope="module")
def bands(scene):
    """What an engine of this process draws."""
    computing, reading, part = scene
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    source = reading.open(part.image)
    results = [result.outcome for result in computing.engine().run([Scene(source, part.plan, part.rows)])]
    source.close()
    torch.set_num_threads(threads)
    return results


def kill_first(workers, answers):
    """The answers, a worker being killed after the first."""
    for number, answer in enumerate(answers):
        yield answer
        if number == 0:
            os.kill(int(re.search(r"process (\d+)", workers.names[0])[1]), signal.SIGKILL)


def same(answers, bands):
    found = sorted((answer.outcome for answer in answers), key=lambda band: band.window)
    return len(found) == len(bands) and all(
        a.window == b.window and np.array_equal(a.planes, b.planes) for a, b in zip(found, bands, strict=True)
    )


@pytest.mark.slow
def test_two_workers_give_the_bands_of_the_engine_also_when_one_is_killed(cluster, scene, bands, caplog):
    computing, reading, part = scene
    with RayWorkers(computing, reading, workers=2) as workers:
        assert same(workers.run(split([part], 2)), bands)
        assert same(kill_first(workers, workers.run(split([part], 2))), bands)
        assert "its process or node died" in caplog.text
        missing = part._replace(image="/nowhere/x.tif")
        (answer,) = workers.run([Task((missing,))])
        assert isinstance(answer.outcome, DataError)
        assert re.match(r"/nowhere/x\.tif: node \S+ of the Ray cluster has no such file; .*shared", str(answer.outcome))
        assert workers.tally.finished >= 2 * 600 * 150 - 150 * 24 * 15
    assert cluster.is_initialized()  # it was there before, and is left as it was


@pytest.mark.slow
def test_more_workers_than_the_cluster_has_room_for_are_refused(cluster, scene):
    computing, reading, _ = scene
    with pytest.raises(ConfigError, match="3 workers want a processor each, but the cluster has 2"):
        RayWorkers(computing, reading, workers=3).__enter__()
