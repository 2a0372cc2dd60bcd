"""The application graph. The only file that calls .bind().

No postponed annotations here: Serve uses the annotation of `args` to build AppArgs from a config's `args:`.
"""

from ray import serve

from deployments.args import AppArgs
from deployments.replicas.backbone import FusedBackbone
from deployments.replicas.ingress import Ingress
from deployments.replicas.router import Router


def build_app(args: AppArgs) -> serve.Application:
    """Ingress over a router pool and backbone replicas. Their sizes are in serve_config.yaml."""
    backbone = serve.deployment(FusedBackbone).bind(args)
    router = serve.deployment(Router).bind(args)
    # Serve starts replicas in this order: the backbone is first because it takes longest
    return serve.deployment(Ingress).bind(args, backbone, router)
