"""The list of our nodes."""

from comfy_api.latest import ComfyExtension

from .host import folders, pages


class CascadeVSRExtension(ComfyExtension):
    """Registers model folders, help pages and the routes of Compare Video, and hands the nodes to the host."""

    async def on_load(self):
        """Make folders known and files found before the first node list, routes before the server starts."""
        from .host.comparisons import add_routes
        from .samples import place_samples
        from .templates import serve_old_names

        folders.register_folders()
        pages.register_pages()
        add_routes()
        place_samples()
        serve_old_names()

    async def get_node_list(self):
        """List the nodes in the order of a graph."""
        from .adapters import LoadVSRAdapter, ReferenceTokens
        from .colour import ColourMatch
        from .compare_video import CompareVideo
        from .conditioning import ReferenceSet, VSRConditioning
        from .degrade import DegradeVideo
        from .faster import FasterSampling
        from .film import LoadFilm, SaveFilm
        from .frames import CascadeInput, TemporalDecode
        from .guidance import ReferenceCFG, ReferenceCFGGuider
        from .loaders import LoadVideoRestorer
        from .low_frequency import LowFrequencyTie
        from .measure import CompareMeasure
        from .motion import EstimateMotion, LatentPropagation, LoadFlowModel
        from .motion_guidance import MotionGuidance
        from .plan import VSRPlan
        from .restore import RestoreFrames
        from .samples import SampleClip
        from .sampling import RefineSigmas, RestorerSampler, SeededNoise
        from .sdedit import SDEditDegradation
        from .steady import SteadyUpscaledVideo
        from .tiling import SpatialTiles, TemporalWindows
        from .upscale_film import UpscaleFilm

        return [
            LoadFilm,
            LoadVideoRestorer,
            CascadeInput,
            ReferenceSet,
            VSRConditioning,
            SeededNoise,
            RestorerSampler,
            RefineSigmas,
            LoadFlowModel,
            EstimateMotion,
            LatentPropagation,
            MotionGuidance,
            SpatialTiles,
            TemporalWindows,
            TemporalDecode,
            SteadyUpscaledVideo,
            ColourMatch,
            DegradeVideo,
            CompareMeasure,
            ReferenceCFGGuider,
            ReferenceCFG,
            LowFrequencyTie,
            VSRPlan,
            ReferenceTokens,
            LoadVSRAdapter,
            SDEditDegradation,
            SaveFilm,
            UpscaleFilm,
            RestoreFrames,
            SampleClip,
            CompareVideo,
            FasterSampling,
        ]
