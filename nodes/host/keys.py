"""Names under which our nodes find each other's data in LATENT, CONDITIONING and model options."""

# In a conditioning
LR_KEY = "concat_latent_image"  # the host's own name for a latent that joins on the channels
LEVEL_KEY = "vsr_noise_level"  # noise in the LR clip, 0..1; in transformer options: thousandths, (b,) int64
LR_NOISE_KEY = "vsr_lr_noise"  # that noise, before it is scaled by the level; absent at level 0
REFERENCES_KEY = "vsr_references"  # models.unimmvsr.references.References
# Keys of a processed conditioning ("model_conds") that hold references; without them it is the null reference
REFERENCE_CONDS = ("references", "reference_starts", "context_latents")
NOISE_STEPS = 1000  # steps of the schedules in whose thousandths a noise level is counted

# In a LATENT
SIZE_KEY = "vsr_size"  # the exact frames, height and width that the padded latent stands for
SYSTEM_KEY = "vsr_system"  # the System whose LR clip "samples" are
ALPHAS_KEY = "vsr_lr_alphas"  # (steps,) float32 shares of signal power of the schedule that noises LR frames
DEVIATION_KEY = "vsr_lr_deviation"  # spread of what the encoder finds, where the LR latent is drawn from it
FIRST_KEY = "vsr_first_frame"  # latent frames of a film before the first of this part of it, which noise counts
PADDED_TO_KEY = "vsr_padded_to"  # px that sides were padded to multiples of, where that is not a latent cell
WORK_KEY = "vsr_work_size"  # (height, width) px the latent's picture has where a small one was enlarged

# In model options
PRESET_KEY = "vsr_preset"
DEFAULT, PUBLISHED = "default", "reference"  # the second's value is what shared graphs say
PRESETS = (DEFAULT, PUBLISHED)

# In transformer options
STARTS_KEY = "vsr_reference_starts"  # {number of a stream of context_latents, from 1: its first time index}
# (functions (x, log variance, sigma, transformer options) -> x): act on a freshly sampled latent, in the network's
# own scale
AFTER_STEP_KEY = "vsr_after_step"
STEPPING_KEY = "vsr_stepping"  # True where the running sampler calls those functions itself
UNEDITED_KEY = "vsr_unedited"  # {"x0": tensor or None}: what the network predicted, before a node edited it
TILES_KEY = "vsr_tiles"  # the TileChoice of a run; also the key of that wrapper
PROGRESS_KEY = "vsr_progress"  # the SamplingProgress of a run
CLIP_KEY = "vsr_clip"  # the RunClip that Upscale Film samples now, for patches without a clip of their own
CACHE_KEY = "easycache"  # the host's own name for what EasyCache and LazyCache keep in a run
PART_KEY = "vsr_part"  # (start, length) of a call within its step, 0..1
SAVING_KEY = "vsr_saving"  # the Saving of a MODEL: what Faster Sampling leaves out
DEEP_KEY = "vsr_deep"  # the DeepMemory of a run
