"""Serve a classifier or reranker on several machines with Ray Serve (extras `ray` and `serve`).

    python examples/serve_ray.py --checkpoint out --min_replicas 2 --max_replicas 8
    curl http://127.0.0.1:8000/predict --data '{"inputs": "a gripping film"}'

Each replica is what `adaexit serve` runs: an engine whose texts share batches by depth, behind the interface of
text-embeddings-inference. Ray hands a request to the replica with the shorter queue of two, starts more replicas while
queues are longer than --requests_per_replica, fewer when they are shorter, and replaces a replica whose engine has
failed. On a cluster all machines must see the checkpoint: a name on the Hub, or a shared folder.

`/info` and `/metrics` are those of one replica; Ray's own metrics count all of them. In production deploy the same
application with Ray's tools:

    serve run serve_ray:app checkpoint=out min_replicas=2 max_replicas=8
"""

import argparse
import os
import time
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from adaexit_hf.cli.options import read_config, threshold_in
from adaexit_hf.cli.serve import ServeOptions, application

try:
    from ray import serve
except ImportError:  # said by `main`, after --help
    serve = None


class Settings(BaseModel):
    """What `serve run serve_ray:app name=value ...` may set, and the flags of this script."""

    model_config = ConfigDict(extra="forbid")

    checkpoint: str = Field(description="Hub name or folder of an early-exit model")
    runtime: str = Field(default="torch", description="torch, or onnx for what adaexit export has written")
    precision: str | None = Field(default=None, description="with onnx: fp32 or int8")
    exit_threshold: str | None = Field(
        default=None, description="a number, or none for full depth; default: that of the checkpoint"
    )
    min_replicas: int = Field(default=1, ge=1, description="replicas that always run")
    max_replicas: int = Field(default=1, ge=1, description="replicas under load")
    requests_per_replica: float = Field(
        default=16, gt=0, description="requests under way per replica that Ray aims at"
    )
    max_queued_requests: int = Field(
        default=1000, ge=1, description="requests that wait for a replica; beyond it they get status 503"
    )
    cpus_per_replica: int = Field(default=1, ge=1, description="CPUs, and threads, per replica")
    api_key: str | None = Field(default=None, description="key that requests must bring, as for adaexit serve")
    gpus_per_replica: float = Field(default=0, ge=0, description="0.5: two replicas share a GPU; 0: run on the CPU")


def app(settings: Settings) -> Any:
    """The application for Ray Serve.

    Raises:
        ValueError: There is no such model, or fewer replicas are allowed than must run.
    """
    if settings.max_replicas < settings.min_replicas:
        raise ValueError(
            f"max_replicas: got {settings.max_replicas}, fewer than min_replicas {settings.min_replicas}; pass at "
            f"least {settings.min_replicas}"
        )
    options = ServeOptions(
        runtime=settings.runtime,
        precision=settings.precision,
        exit_threshold=settings.exit_threshold,
        # Here, since replicas on other machines have another environment.
        api_key=settings.api_key or os.environ.get("ADAEXIT_API_KEY"),
        threads=settings.cpus_per_replica,
        device="cuda" if settings.gpus_per_replica else "cpu",
    )
    config = read_config(settings.checkpoint, options)  # what is wrong fails here, not in a replica
    if settings.exit_threshold is not None:
        config.thresholds(threshold_in(settings.exit_threshold))

    def build() -> Any:
        return application(settings.checkpoint, options)

    @serve.ingress(build)
    class Replica:
        """`application`, and how Ray learns that its engine has failed."""

        def check_health(self) -> None:
            if not self.app.state.engine.alive:
                raise RuntimeError("the engine has failed; its log says why")

    scaling = {
        "min_replicas": settings.min_replicas,
        "max_replicas": settings.max_replicas,
        "target_ongoing_requests": settings.requests_per_replica,
    }
    return serve.deployment(
        Replica,
        name="adaexit",
        autoscaling_config=scaling,
        max_ongoing_requests=options.max_concurrent_texts,
        max_queued_requests=settings.max_queued_requests,
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica},
    ).bind()


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, field in Settings.model_fields.items():
        parser.add_argument(f"--{name}", required=field.is_required(), help=field.description)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines connect")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    given = vars(parser.parse_args(argv))
    if serve is None:
        parser.error("ray: not installed; run pip install adaexit_hf[ray,serve]")
    host, port = given.pop("host"), given.pop("port")
    try:
        settings = Settings.model_validate({name: value for name, value in given.items() if value is not None})
        application_of_ray = app(settings)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    serve.start(http_options={"host": host, "port": port})
    serve.run(application_of_ray, name="adaexit")
    print(f"{settings.checkpoint} on http://{host}:{port}, Ctrl-C stops it", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        serve.shutdown()


if __name__ == "__main__":
    main()
