"""Names under which our nodes find each other's data in LATENT, CONDITIONING and model options."""

# In a conditioning
LR_KEY = "concat_latent_image"  # the host's own name for a latent that joins on the channels
LEVEL_KEY = "vsr_noise_level"  # noise in the LR clip, 0..1; in transformer options: thousandths, (b,) int64
LR_NOISE_KEY = "vsr_lr_noise"  # that noise, before it is scaled by the level; absent at level 0
REFERENCES_KEY = "vsr_references"  # models.unimmvsr.references.References
# Keys of a processed conditioning ("model_conds") that hold references; without them it is the null reference
REFERENCE_CONDS = ("references", "reference_starts", "context_latents")

# In a LATENT of Cascade Input
KIND_KEY = "vsr_kind"  # what "samples" are, where that is no latent
LR_FRAMES = "lr frames"  # a kind: frames in -1..1 at the grid of the latent, for networks that take pixels
LR_START = "lr start"  # a kind: encoded LR frames that sampling starts from, too
DEVIATION_KEY = "vsr_lr_deviation"  # spread of what the encoder finds, where the LR latent is drawn from it
WORK_KEY = "vsr_work_size"  # (height, width) px the latent's picture has where a small one was enlarged
ALPHAS_KEY = "vsr_lr_alphas"  # (steps,) float32 shares of signal power of the schedule that noises LR frames

# In model options, and as an attribute of our VAEs
PRESET_KEY = "vsr_preset"
DEFAULT, REFERENCE = "default", "reference"
PRESETS = (DEFAULT, REFERENCE)

# In transformer options
STARTS_KEY = "vsr_reference_starts"  # {number of a stream of context_latents, from 1: its first time index}
# (functions (x, log variance, sigma, sigmas) -> x): act on a freshly sampled latent, in the network's own scale
AFTER_STEP_KEY = "vsr_after_step"
STEPPING_KEY = "vsr_stepping"  # True where the running sampler calls those functions itself
UNEDITED_KEY = "vsr_unedited"  # {"x0": tensor or None}: what the network predicted, before a node edited it
TILES_KEY = "vsr_tiles"  # in transformer_options: the TileChoice of a run; also the key of that wrapper
