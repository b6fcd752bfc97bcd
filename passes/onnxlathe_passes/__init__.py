"""The standard passes, one idea a file.

This package is the first plugin: it is found through the entry-point group `onnxlathe.passes` like
anybody's, and uses nothing of `onnxlathe` but its public API. The order of `PASSES` is the order in which
the members of a group are tried.
"""

from onnxlathe.rewrite import Pass
from onnxlathe_passes.affine import Bias, InputScale, Scale
from onnxlathe_passes.affine_chain import AffineChain, TwoFactors
from onnxlathe_passes.attention import Attention
from onnxlathe_passes.attention_layout import AttentionLayout
from onnxlathe_passes.batchnorm import ConvBatchNorm, FarBatchNorm
from onnxlathe_passes.bidirectional import Bidirectional
from onnxlathe_passes.branches import EqualBranches
from onnxlathe_passes.broadcasting import BroadcastOperand
from onnxlathe_passes.cancelled import CancelledTerms
from onnxlathe_passes.casts import CastChain, NoopCast
from onnxlathe_passes.causal import CausalAttention
from onnxlathe_passes.clamps import ClampChain
from onnxlathe_passes.concats import ConcatChain, ConcatEmpty
from onnxlathe_passes.constant_chains import OffsetChain, ScaleChain
from onnxlathe_passes.conv_crop import ConvCrop
from onnxlathe_passes.counting_gathers import CountingGather
from onnxlathe_passes.cse import CommonSubexpressions
from onnxlathe_passes.dead import Dead
from onnxlathe_passes.dedup import Dedup
from onnxlathe_passes.einsum_units import EinsumUnits
from onnxlathe_passes.element_gather import ElementGather
from onnxlathe_passes.elements_late import ElementsLate
from onnxlathe_passes.flat_gemm import FlatGemm
from onnxlathe_passes.floor_division import FloorDivision
from onnxlathe_passes.fold import Fold
from onnxlathe_passes.fold_offset import FoldOffset
from onnxlathe_passes.fold_scale import FoldScale
from onnxlathe_passes.full_rank import FullRank
from onnxlathe_passes.gather_moved import GatherMoved
from onnxlathe_passes.gather_rows import GatherRows
from onnxlathe_passes.gelu import Gelu
from onnxlathe_passes.gemm import GemmFactors, GemmTranspose, MatMulAdd
from onnxlathe_passes.global_pool import GlobalPool
from onnxlathe_passes.grouped_heads import GroupedHeads
from onnxlathe_passes.grouped_projection import GroupedProjection
from onnxlathe_passes.groupnorm import GroupNorm
from onnxlathe_passes.hardswish import HardSigmoid, HardSwish
from onnxlathe_passes.identity import Dropout, Identity
from onnxlathe_passes.instancenorm import InstanceNorm
from onnxlathe_passes.joint_concat import JointConcat
from onnxlathe_passes.joint_norms import JointNorms
from onnxlathe_passes.joint_steps import JointSteps
from onnxlathe_passes.layernorm import LayerNorm
from onnxlathe_passes.lean_constants import LeanConstants
from onnxlathe_passes.lean_operands import LeanOperands
from onnxlathe_passes.lean_recurrence import LastState, LeanRecurrence
from onnxlathe_passes.legalize import Legalize
from onnxlathe_passes.loop_invariants import LoopInvariant
from onnxlathe_passes.mish import Mish
from onnxlathe_passes.moved_rows import MovedRows
from onnxlathe_passes.moves import MoveChain
from onnxlathe_passes.neutral import Neutral, SingleOperand, WhereChosen
from onnxlathe_passes.noop_views import (
    NoopPad,
    NoopResize,
    NoopSlice,
    NoopSplit,
    NoopTranspose,
    NoopView,
    SplitConcat,
)
from onnxlathe_passes.opset import Opset
from onnxlathe_passes.pad import PadInto
from onnxlathe_passes.pad_chain import PadChain
from onnxlathe_passes.patch_projection import PatchProjection
from onnxlathe_passes.pointwise_conv import PointwiseConv
from onnxlathe_passes.precision import Precision
from onnxlathe_passes.prepended import PrependedConstant
from onnxlathe_passes.projections import MergeProjections
from onnxlathe_passes.reciprocal import Reciprocal
from onnxlathe_passes.rectifiers import Rectifier
from onnxlathe_passes.recurrence import Recurrence
from onnxlathe_passes.reduce_norms import ReduceNorm
from onnxlathe_passes.reductions import NoopReduce, ReduceChain, ReduceKeepdims
from onnxlathe_passes.repeated import Idempotent, Involution
from onnxlathe_passes.reshape_target import ReshapeTarget
from onnxlathe_passes.resize_scales import ResizeScales
from onnxlathe_passes.rmsnorm import RMSNorm
from onnxlathe_passes.rolls import Roll
from onnxlathe_passes.rotary import Rotary
from onnxlathe_passes.rotate_half import RotateHalf
from onnxlathe_passes.row_views import RowViews
from onnxlathe_passes.separate_axes import SeparateAxes
from onnxlathe_passes.sequences import Sequences
from onnxlathe_passes.shapes import Shapes
from onnxlathe_passes.shrink import Shrink
from onnxlathe_passes.sigmoids import Sigmoid
from onnxlathe_passes.slice_early import SliceEarly
from onnxlathe_passes.slice_partition import GatherSlice, SlicePartition
from onnxlathe_passes.slices import SliceChain
from onnxlathe_passes.softmax import Softmax
from onnxlathe_passes.softmax_guard import SoftmaxGuard
from onnxlathe_passes.softplus import Softplus
from onnxlathe_passes.space_to_depth import FocusConv, SpaceToDepth
from onnxlathe_passes.split_chain import SplitChain
from onnxlathe_passes.split_gather import SplitGather
from onnxlathe_passes.split_late import SplitLate
from onnxlathe_passes.stacked_heads import StackedHeads
from onnxlathe_passes.stacked_products import StackedProducts
from onnxlathe_passes.stacks import Restack
from onnxlathe_passes.steady import Steady
from onnxlathe_passes.swish import Swish
from onnxlathe_passes.table_slice import TableSlice
from onnxlathe_passes.tabulated import TabulatedIndex
from onnxlathe_passes.transposes import TransposeAround, TransposeChain
from onnxlathe_passes.unbind import Unbind
from onnxlathe_passes.uneven_split import UnevenSplit
from onnxlathe_passes.unrolled import UnrolledSteps
from onnxlathe_passes.view_around import ViewAround
from onnxlathe_passes.view_transposes import ViewTranspose
from onnxlathe_passes.views import SqueezeChain, ViewChain
from onnxlathe_passes.where_sizes import WhereSizes
from onnxlathe_passes.written_block import WrittenBlock
from onnxlathe_passes.written_parts import WrittenParts
from onnxlathe_passes.zero_states import ZeroState

PASSES: list[type[Pass]] = [
    Shapes,
    Opset,
    Fold,
    Sequences,
    Identity,
    Dropout,
    NoopCast,
    NoopView,
    NoopTranspose,
    NoopSlice,
    NoopPad,
    NoopSplit,
    NoopResize,
    NoopReduce,
    Neutral,
    SingleOperand,
    WhereChosen,
    Idempotent,
    Involution,
    CastChain,
    ClampChain,
    ScaleChain,
    OffsetChain,
    TransposeChain,
    TransposeAround,
    SqueezeChain,
    ReduceKeepdims,
    ViewChain,
    ViewAround,
    SliceChain,
    ConcatEmpty,
    ConcatChain,
    SplitConcat,
    PadChain,
    ReduceChain,
    WhereSizes,
    ZeroState,
    LeanRecurrence,
    Dedup,
    CommonSubexpressions,
    EqualBranches,
    LoopInvariant,
    LeanConstants,
    Dead,
    Recurrence,
    SeparateAxes,
    PadInto,
    GlobalPool,
    ConvCrop,
    FocusConv,
    SpaceToDepth,
    ResizeScales,
    ConvBatchNorm,
    Bias,
    Scale,
    InputScale,
    MatMulAdd,
    GemmTranspose,
    GemmFactors,
    AffineChain,
    LayerNorm,
    RMSNorm,
    InstanceNorm,
    GroupNorm,
    Gelu,
    Softplus,
    Sigmoid,
    Softmax,
    Rectifier,
    Shrink,
    Mish,
    Swish,
    HardSigmoid,
    HardSwish,
    Reciprocal,
    CancelledTerms,
    FloorDivision,
    ReduceNorm,
    FlatGemm,
    SoftmaxGuard,
    FarBatchNorm,
    ViewTranspose,
    MoveChain,
    PointwiseConv,
    ReshapeTarget,
    EinsumUnits,
    PrependedConstant,
    CountingGather,
    WrittenParts,
    WrittenBlock,
    TabulatedIndex,
    Steady,
    BroadcastOperand,
    LeanOperands,
    FoldScale,
    TwoFactors,
    Roll,
    MovedRows,
    GatherSlice,
    GatherMoved,
    GatherRows,
    TableSlice,
    SliceEarly,
    Bidirectional,
    LastState,
    Restack,
    JointSteps,
    Unbind,
    StackedProducts,
    Rotary,
    RotateHalf,
    ElementGather,
    SlicePartition,
    StackedHeads,
    MergeProjections,
    JointNorms,
    SplitLate,
    SplitChain,
    FoldOffset,
    ElementsLate,
    CausalAttention,
    UnrolledSteps,
    AttentionLayout,
    GroupedHeads,
    GroupedProjection,
    RowViews,
    JointConcat,
    FullRank,
    SplitGather,
    PatchProjection,
    UnevenSplit,
    Precision,
    Attention,
    Legalize,
]
