"""The operators that a step in torch form may call: names only, so that no torch is needed.

The compiler refuses any other operator on the author's machine, and the loader on the device, from
this one set. The lists hold the forward pass as torch's own kernels take it (attention, recurrent
layers, losses as one call each); the backward pass is autograd's. Left out on purpose are operators
that draw random numbers (`random.keep_mask` is ours, a function of the seed), `empty` and its kin,
which would show a device's old memory, views by raw strides, files, storages, whatever changes a
tensor's shape or storage in place, and anything that reads a value back into Python.

What writes its argument, and what hands its argument's memory on, stands in lists too, so that a
graph can be checked without torch (`headwater.aten_writes`); a test holds them against its schemas.
"""

_POINTWISE = """
abs.default acos.default acosh.default add.Tensor add.Scalar addcdiv.default addcmul.default
asin.default asinh.default atan.default atan2.default atanh.default bitwise_and.Scalar
bitwise_and.Tensor bitwise_not.default bitwise_or.Scalar bitwise_or.Tensor
bitwise_left_shift.Tensor_Scalar bitwise_right_shift.Tensor_Scalar bitwise_xor.Scalar
bitwise_xor.Tensor ceil.default clamp.default clamp.Tensor clamp_max.default clamp_max.Tensor
clamp_min.default clamp_min.Tensor clone.default copysign.Scalar copysign.Tensor cos.default
cosh.default deg2rad.default rad2deg.default div.Scalar div.Scalar_mode div.Tensor
div.Tensor_mode eq.Scalar eq.Tensor erf.default
erfc.default erfinv.default exp.default exp2.default expm1.default fill.Scalar fill.Tensor
floor.default floor_divide.Scalar floor_divide.default fmax.default fmin.default fmod.Scalar
fmod.Tensor frac.default full_like.default ge.Scalar ge.Tensor gt.Scalar gt.Tensor hypot.default
isinf.default isnan.default le.Scalar le.Tensor lerp.Scalar lerp.Tensor log.default log10.default
log1p.default log2.default logaddexp.default logaddexp2.default logical_and.default
logical_not.default logical_or.default logical_xor.default logit.default lt.Scalar lt.Tensor
masked_fill.Scalar masked_fill.Tensor maximum.default minimum.default mul.Scalar mul.Tensor
nan_to_num.default ne.Scalar ne.Tensor neg.default ones_like.default pow.Scalar pow.Tensor_Scalar
pow.Tensor_Tensor reciprocal.default remainder.Scalar remainder.Scalar_Tensor remainder.Tensor
round.default round.decimals rsqrt.default rsub.Scalar rsub.Tensor sgn.default sigmoid.default
sign.default sin.default sinc.default sinh.default sqrt.default square.default sub.Scalar sub.Tensor
tan.default tanh.default to.dtype _to_copy.default trunc.default where.ScalarOther
where.ScalarSelf where.self xlogy.Scalar_Other xlogy.Scalar_Self xlogy.Tensor zeros_like.default
"""

_ACTIVATIONS = """
celu.default elu.default gelu.default glu.default hardshrink.default hardsigmoid.default
hardswish.default hardtanh.default leaky_relu.default log_sigmoid.default log_softmax.int
mish.default _prelu_kernel.default relu.default relu6.default selu.default silu.default
softmax.int softplus.default softshrink.default _safe_softmax.default threshold.default
"""

_REDUCTIONS = """
all.default all.dim amax.default amin.default aminmax.default any.default any.dim argmax.default
argmin.default argsort.default argsort.stable count_nonzero.default count_nonzero.dim_IntList
cummax.default cummin.default cumprod.default cumsum.default kthvalue.default
linalg_vector_norm.default
logcumsumexp.default logsumexp.default max.default max.dim mean.default mean.dim median.default
median.dim min.default min.dim nansum.default norm.Scalar norm.ScalarOpt_dim
norm.ScalarOpt_dim_dtype norm.ScalarOpt_dtype prod.default prod.dim_int sort.default sort.stable
std.correction std_mean.correction sum.default sum.dim_IntList topk.default trace.default
var.correction
var_mean.correction
"""

_SHAPES = """
alias.default arange.default arange.start arange.start_step cat.default channel_shuffle.default
chunk.default
constant_pad_nd.default contiguous.default copy.default detach.default diag_embed.default
diagonal.default diagonal_scatter.default expand.default expand_as.default eye.default eye.m
flatten.using_ints flip.default full.default lift_fresh_copy.default linspace.default
movedim.int movedim.intlist narrow.default new_full.default new_ones.default new_zeros.default
ones.default pad.default permute.default pixel_shuffle.default pixel_unshuffle.default
reflection_pad1d.default reflection_pad2d.default reflection_pad3d.default repeat.default
repeat_interleave.self_int replication_pad1d.default replication_pad2d.default
replication_pad3d.default reshape.default roll.default rot90.default scalar_tensor.default
select.int select_scatter.default slice.Tensor slice_scatter.default split.Tensor
split_with_sizes.default squeeze.default squeeze.dim squeeze.dims stack.default t.default
tile.default transpose.int tril.default tril_indices.default triu.default triu_indices.default
unbind.int unflatten.int unfold.default unsafe_chunk.default unsafe_split.Tensor
unsafe_split_with_sizes.default _unsafe_view.default unsqueeze.default view.default zeros.default
sym_numel.default sym_size.int
"""

_PRODUCTS = """
addbmm.default addmm.default addmv.default addr.default baddbmm.default bilinear.default
bmm.default dot.default linear.default matmul.default mm.default mv.default outer.default
_trilinear.default vdot.default
"""

_INDEXING = """
embedding.default embedding_bag.padding_idx gather.default index.Tensor index_add.default
index_copy.default
index_fill.int_Scalar index_fill.int_Tensor index_put.default index_select.default
masked_scatter.default one_hot.default scatter.reduce scatter.src scatter.value
scatter.value_reduce scatter_add.default scatter_reduce.two searchsorted.Tensor
take_along_dim.default
"""

_LAYERS = """
adaptive_avg_pool1d.default adaptive_avg_pool2d.default adaptive_avg_pool3d.default
adaptive_max_pool1d.default adaptive_max_pool2d.default adaptive_max_pool3d.default
affine_grid_generator.default avg_pool1d.default avg_pool2d.default avg_pool3d.default
batch_norm.default col2im.default conv1d.default conv1d.padding conv2d.default conv2d.padding
conv3d.default conv3d.padding conv_transpose1d.default conv_transpose2d.input
conv_transpose3d.input convolution.default grid_sampler.default group_norm.default gru.input
im2col.default instance_norm.default layer_norm.default lstm.input max_pool1d.default
max_pool1d_with_indices.default max_pool2d.default max_pool2d_with_indices.default
max_pool3d.default max_pool3d_with_indices.default max_unpool2d.default max_unpool3d.default
rms_norm.default rnn_relu.input rnn_tanh.input scaled_dot_product_attention.default
upsample_bicubic2d.vec upsample_bilinear2d.vec upsample_linear1d.vec upsample_nearest1d.vec
upsample_nearest2d.vec upsample_nearest3d.vec upsample_trilinear3d.vec
_upsample_nearest_exact1d.vec _upsample_nearest_exact2d.vec _upsample_nearest_exact3d.vec
_upsample_bilinear2d_aa.vec _upsample_bicubic2d_aa.vec _weight_norm.default
_weight_norm_interface.default
"""

_LOSSES = """
binary_cross_entropy.default binary_cross_entropy_with_logits.default cdist.default
cosine_embedding_loss.default cosine_similarity.default cross_entropy_loss.default
ctc_loss.Tensor hinge_embedding_loss.default huber_loss.default kl_div.default l1_loss.default
margin_ranking_loss.default mse_loss.default multi_margin_loss.default
multilabel_margin_loss_forward.default nll_loss.default nll_loss_nd.default nll_loss2d.default
pairwise_distance.default poisson_nll_loss.default smooth_l1_loss.default
soft_margin_loss.default triplet_margin_loss.default
"""

_IN_PLACE = """
abs_.default add_.Scalar add_.Tensor addcdiv_.default addcmul_.default addmm_.default
baddbmm_.default bitwise_and_.Scalar bitwise_and_.Tensor bitwise_not_.default
bitwise_or_.Scalar bitwise_or_.Tensor bitwise_xor_.Scalar bitwise_xor_.Tensor ceil_.default
celu_.default clamp_.default clamp_.Tensor clamp_max_.default clamp_max_.Tensor clamp_min_.default
clamp_min_.Tensor copy_.default cos_.default cumprod_.default cumsum_.default div_.Scalar
div_.Scalar_mode div_.Tensor div_.Tensor_mode elu_.default erf_.default exp_.default
expm1_.default fill_.Scalar fill_.Tensor floor_.default floor_divide_.Scalar
floor_divide_.Tensor fmod_.Scalar fmod_.Tensor gelu_.default hardsigmoid_.default
hardswish_.default hardtanh_.default index_add_.default index_fill_.int_Scalar
index_fill_.int_Tensor index_put_.default leaky_relu_.default lerp_.Scalar lerp_.Tensor
log_.default log1p_.default log2_.default logical_and_.default logical_not_.default
logical_or_.default masked_fill_.Scalar masked_fill_.Tensor masked_scatter_.default mish_.default
mul_.Scalar mul_.Tensor nan_to_num_.default neg_.default pow_.Scalar pow_.Tensor
reciprocal_.default relu_.default relu6_.default remainder_.Scalar remainder_.Tensor
round_.default rsqrt_.default scatter_.reduce scatter_.src scatter_.value scatter_.value_reduce
scatter_add_.default scatter_reduce_.two selu_.default sigmoid_.default sign_.default
silu_.default sin_.default sqrt_.default square_.default sub_.Scalar sub_.Tensor tanh_.default
threshold_.default tril_.default triu_.default trunc_.default xlogy_.Tensor zero_.default
"""

_VIEWS = """
alias.default chunk.default contiguous.default detach.default diagonal.default expand.default
expand_as.default flatten.using_ints movedim.int movedim.intlist narrow.default permute.default
reshape.default select.int slice.Tensor split.Tensor split_with_sizes.default squeeze.default
squeeze.dim squeeze.dims t.default to.dtype transpose.int unbind.int unflatten.int unfold.default
unsafe_chunk.default unsafe_split.Tensor unsafe_split_with_sizes.default _unsafe_view.default
unsqueeze.default view.default
"""


def _named(*groups: str) -> frozenset[str]:
    return frozenset(f"aten.{name}" for group in groups for name in group.split())


IN_PLACE_OPERATORS = _named(_IN_PLACE)
"""These write their first argument and return it."""

_ELEMENTWISE = _named(_POINTWISE, _ACTIVATIONS) - _named(
    "glu.default log_softmax.int softmax.int _safe_softmax.default"
)

POINTWISE_OPERATORS = _ELEMENTWISE | {
    name for name in IN_PLACE_OPERATORS if name.replace("_.", ".") in _ELEMENTWISE
}
"""Each element of a result depends on the elements at its place only."""

VIEW_OPERATORS = _named(_VIEWS)
"""The result of these may share the memory of the first argument."""

DROPOUT_ARGUMENTS = {
    **dict.fromkeys(_named("lstm.input gru.input rnn_tanh.input rnn_relu.input"), 5),
    **dict.fromkeys(_named("scaled_dot_product_attention.default"), 4),
}
"""Where these take a dropout probability, which must be 0: they would draw numbers of their own."""

STATISTICS_OPERATORS = _named("batch_norm.default instance_norm.default")
"""These write running statistics, the fourth and fifth argument, though no schema says so."""

ATEN_OPERATORS = _named(
    _POINTWISE, _ACTIVATIONS, _REDUCTIONS, _SHAPES, _PRODUCTS, _INDEXING, _LAYERS, _LOSSES,
    _IN_PLACE,
)  # fmt: skip
"""ATen overloads by their full names, such as `aten.mm.default`."""

NUMBER_OPERATORS: frozenset[str] = frozenset(
    f"number.{name}"
    for name in (
        "add", "sub", "mul", "floordiv", "mod", "truediv", "neg", "minimum", "maximum", "sum",
        "int", "float",
    )
)  # fmt: skip
"""Arithmetic on sizes, which depend on the batch: Python numbers in, a Python number out."""

COPY_OPERATOR = "aten.clone.default"
"""What a graph writes of its inputs it copies first."""

ITEM_OPERATOR = "item"
"""Takes one result of an operator that has several: `item(results, index)`."""

GRADIENT_OPERATOR = "gradient.enabled"
"""Begins a part whose operators are differentiated or not: `gradient.enabled(True or False)`."""

MASK_OPERATOR = "random.keep_mask"
"""Dropout's mask: `random.keep_mask(seed, site, shape, probability)`, a boolean tensor of `shape`
that is the same on every runtime."""

OPERATORS: frozenset[str] = (
    ATEN_OPERATORS | NUMBER_OPERATORS | {ITEM_OPERATOR, GRADIENT_OPERATOR, MASK_OPERATOR}
)
"""Everything that a node may call."""

WORDS: frozenset[str] = frozenset({
    "none", "tanh", "floor", "trunc", "sum", "mean", "prod", "amax", "amin",
    "add", "multiply", "constant", "reflect", "replicate", "circular", "same", "valid",
})  # fmt: skip
"""The only strings that an argument may be: modes of gelu, div, padding, reductions."""
