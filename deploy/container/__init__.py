"""A container image of a server, built by `bentoml containerize`: `python -m deploy.container`, or `make container`.

On whoever's machine the image is built:

- `engine`: finds Docker, podman or buildah, and how they work here; starts and stops containers.
- `wheels`: collects packages where pip reaches them through a mirror.
- `build`: Bento and image, after checking that all they need is there.
- `trial`: starts the image as in production, animates, stops it during an animation.

Within the image's build, in stages of `Dockerfile.j2`:

- `packages`: which packages a stage installs.
- `bytecode`: compiles the modules that a server loads.
- `inventory`: SBOM, licences, and what takes the room.

`base.sh` makes a base image where no registry is reached.
"""
