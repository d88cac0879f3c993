"""vqclip: type `desert:50 | snow:25` and watch a picture grow.

VQGAN draws, CLIP judges, and an optimiser moves VQGAN's codebook-quantised latent until CLIP agrees (Crowson 2021).

    import vqclip
    run = vqclip.generate("desert:50 | snow:25", steps=200, seed=7)
    session = vqclip.Session.create("workspace", run)
    for frame in session.record(run):
        print(frame.step, frame.similarity)
    vqclip.write_video(session, fps=30)

One idea carries the package: an optimisation is an iterator of frames, and whatever scores an image is a function
`loss(image) -> scalar`. Letters of shapes, everywhere: B images, C latent channels, h w latent grid, H W pixels,
f = H/h, K codes, N cutouts, S cutout size, P prompts, D embedding.

Importing this package loads nothing; what is used is loaded then.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "Prompt": "prompts", "PromptError": "prompts", "parse": "prompts", "describe": "prompts",
    "Settings": "settings", "SettingsError": "settings",
    "load_image": "images", "save_png": "images", "read_recipe": "images", "ImageError": "images",
    "CheckpointError": "catalogue", "checkpoint_table": "catalogue", "fetch": "checkpoints",
    "VQGAN": "vqgan", "load_vqgan": "vqgan",
    "Perceptor": "perceptor", "load_clip": "perceptor",
    "VQLatent": "latent",
    "Cutouts": "cutouts", "AUGMENTS": "cutouts",
    "LOSSES": "losses", "PromptLoss": "losses",
    "Frame": "run", "Run": "run", "generate": "run", "echo": "run",
    "Batch": "batch", "generate_batch": "batch",
    "Session": "session", "SessionError": "session", "workspace": "session",
    "Player": "player", "Studio": "studio", "Form": "form", "Page": "page",
    "Preflight": "preflight", "look": "preflight", "machine": "preflight",
    "write_video": "video",
    "preview": "watch", "progress": "watch", "show_video": "watch", "offer_download": "watch",
}  # fmt: skip

__all__ = [*_HOMES, "__version__"]

def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
