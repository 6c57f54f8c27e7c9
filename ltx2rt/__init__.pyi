"""The public names of `ltx2rt`: the only table of them. `__init__.py` loads what is listed here,
type checkers read it as it is, and `docs/api.md` is made from it (`python -m tests.api_page`).
Everything else may change in any release.
"""

from ltx2rt.building import build as build
from ltx2rt.bundle.bundle import Bundle as Bundle
from ltx2rt.bundle.bundle import open_bundle as open_bundle
from ltx2rt.components.enhance import EnhanceConfig as EnhanceConfig
from ltx2rt.components.enhance import enhance_prompt as enhance_prompt
from ltx2rt.components.reference_conditioner import ReferenceFile as ReferenceFile
from ltx2rt.config import GenerationConfig as GenerationConfig
from ltx2rt.config import GuidanceConfig as GuidanceConfig
from ltx2rt.config import ImageCondition as ImageCondition
from ltx2rt.config import NeighbourClip as NeighbourClip
from ltx2rt.config import RuntimeConfig as RuntimeConfig
from ltx2rt.errors import BundleError as BundleError
from ltx2rt.errors import CheckpointError as CheckpointError
from ltx2rt.errors import EngineError as EngineError
from ltx2rt.errors import EnhanceError as EnhanceError
from ltx2rt.errors import InternalError as InternalError
from ltx2rt.errors import Ltx2rtError as Ltx2rtError
from ltx2rt.errors import MediaError as MediaError
from ltx2rt.errors import OptionError as OptionError
from ltx2rt.errors import ShapeError as ShapeError
from ltx2rt.errors import UnsupportedError as UnsupportedError
from ltx2rt.latents.duration import AutoDuration as AutoDuration
from ltx2rt.latents.frame_sizes import frame_size as frame_size
from ltx2rt.lora.files import Lora as Lora
from ltx2rt.media.encoding import VideoEncoding as VideoEncoding
from ltx2rt.media.in_memory import image_file as image_file
from ltx2rt.media.in_memory import sound_file as sound_file
from ltx2rt.media.in_memory import video_file as video_file
from ltx2rt.pipelines.audio_to_video import AudioToVideoPipeline as AudioToVideoPipeline
from ltx2rt.pipelines.dfr import DFRInputs as DFRInputs
from ltx2rt.pipelines.dfr import DFRPipeline as DFRPipeline
from ltx2rt.pipelines.distilled import DistilledPipeline as DistilledPipeline
from ltx2rt.pipelines.dub_it import DubItInputs as DubItInputs
from ltx2rt.pipelines.dub_it import DubItPipeline as DubItPipeline
from ltx2rt.pipelines.hdr_ic_lora import HDRICLoraInputs as HDRICLoraInputs
from ltx2rt.pipelines.hdr_ic_lora import HDRICLoraPipeline as HDRICLoraPipeline
from ltx2rt.pipelines.ic_lora import GuidedICLoraPipeline as GuidedICLoraPipeline
from ltx2rt.pipelines.ic_lora import ICLoraInputs as ICLoraInputs
from ltx2rt.pipelines.ic_lora import ICLoraPipeline as ICLoraPipeline
from ltx2rt.pipelines.kept import open_latents as open_latents
from ltx2rt.pipelines.keyframe import KeyframeInterpolationPipeline as KeyframeInterpolationPipeline
from ltx2rt.pipelines.long import Segment as Segment
from ltx2rt.pipelines.long import make_long as make_long
from ltx2rt.pipelines.one_stage import OneStagePipeline as OneStagePipeline
from ltx2rt.pipelines.retake import GuidedRetakePipeline as GuidedRetakePipeline
from ltx2rt.pipelines.retake import RetakePipeline as RetakePipeline
from ltx2rt.pipelines.retake_inputs import RetakeInputs as RetakeInputs
from ltx2rt.pipelines.retake_inputs import TimeWindow as TimeWindow
from ltx2rt.pipelines.text_to_audio import TextToAudioPipeline as TextToAudioPipeline
from ltx2rt.pipelines.two_stages import TwoStagesPipeline as TwoStagesPipeline
from ltx2rt.pipelines.two_stages_hq import TwoStagesHQPipeline as TwoStagesHQPipeline
from ltx2rt.pipelines.upscale import UpscaleInputs as UpscaleInputs
from ltx2rt.pipelines.upscale import UpscalePipeline as UpscalePipeline
from ltx2rt.progress import Cancelled as Cancelled
from ltx2rt.progress import Job as Job
from ltx2rt.progress import Preview as Preview
from ltx2rt.progress import Progress as Progress
from ltx2rt.results.clip import Clip as Clip
from ltx2rt.results.hdr_clip import HdrClip as HdrClip
from ltx2rt.results.hdr_clip import HlgClip as HlgClip
from ltx2rt.results.image_clip import ImageClip as ImageClip
from ltx2rt.results.joined import join_clips as join_clips
from ltx2rt.results.record import Record as Record
from ltx2rt.results.record import record_in as record_in
from ltx2rt.sampling.guidance import GuiderParams as GuiderParams
from ltx2rt.sampling.guidance import GuiderSchedule as GuiderSchedule
from ltx2rt.service.clients import ServerError as ServerError
from ltx2rt.service.service import QueueFullError as QueueFullError
from ltx2rt.trace import Span as Span
from ltx2rt.trace import Trace as Trace

__version__: str
