"""The operators that a step in torch form may call: names only, so that no torch is needed.

The compiler refuses any other operator on the author's machine, and the loader on the device, from
this one set. Every ATen operator here is functional (it writes no argument), deterministic in the
sense of a plan (no random numbers: those come from the counter-based generator) and initializes its
result: `empty` and its kin, which would show a device's old memory, are left out on purpose, as are
views by raw strides, files, storages and anything that reads a value back into Python.
"""

_POINTWISE = """
abs.default add.Tensor add.Scalar addcdiv.default addcmul.default atan.default bitwise_and.Tensor
bitwise_and.Scalar bitwise_not.default bitwise_or.Tensor bitwise_or.Scalar
bitwise_left_shift.Tensor_Scalar bitwise_right_shift.Tensor_Scalar bitwise_xor.Tensor
bitwise_xor.Scalar ceil.default clamp.default clamp.Tensor clamp_min.default clamp_max.default
cos.default div.Scalar div.Scalar_mode div.Tensor div.Tensor_mode eq.Scalar eq.Tensor erf.default
exp.default exp2.default expm1.default floor.default floor_divide.default floor_divide.Scalar
fmod.Scalar fmod.Tensor ge.Scalar ge.Tensor gt.Scalar gt.Tensor isinf.default isnan.default
le.Scalar le.Tensor lerp.Scalar lerp.Tensor log.default log10.default log1p.default log2.default
logical_and.default logical_not.default logical_or.default logical_xor.default logit.default
logit_backward.default lt.Scalar lt.Tensor masked_fill.Scalar masked_fill.Tensor maximum.default
minimum.default mul.Scalar mul.Tensor ne.Scalar ne.Tensor neg.default pow.Scalar
pow.Tensor_Scalar pow.Tensor_Tensor reciprocal.default remainder.Scalar remainder.Tensor
round.default rsqrt.default rsub.Scalar rsub.Tensor sgn.default sigmoid.default
sigmoid_backward.default sign.default sin.default sqrt.default square.default sub.Scalar
sub.Tensor tan.default tanh.default tanh_backward.default trunc.default where.ScalarOther
where.ScalarSelf where.self xlogy.Tensor
"""

_ACTIVATIONS = """
celu.default elu.default elu_backward.default gelu.default gelu_backward.default glu.default
glu_backward.default hardsigmoid.default hardsigmoid_backward.default hardswish.default
hardswish_backward.default hardtanh.default hardtanh_backward.default leaky_relu.default
leaky_relu_backward.default log_sigmoid_backward.default log_sigmoid_forward.default
mish.default mish_backward.default _prelu_kernel.default _prelu_kernel_backward.default
relu.default relu6.default selu.default silu.default silu_backward.default softplus.default
softplus_backward.default softshrink.default softshrink_backward.default threshold.default
threshold_backward.default _softmax.default _softmax_backward_data.default
_log_softmax.default _log_softmax_backward_data.default
"""

_REDUCTIONS = """
all.default all.dim amax.default amin.default any.default any.dim argmax.default argmin.default
count_nonzero.default cumsum.default linalg_vector_norm.default logsumexp.default max.default
max.dim mean.default mean.dim min.default min.dim norm.Scalar norm.ScalarOpt_dim prod.default
prod.dim_int sort.default sort.stable std.correction sum.default sum.dim_IntList topk.default
var.correction var_mean.correction
"""

_SHAPES = """
alias.default arange.default arange.start arange.start_step cat.default clone.default
constant_pad_nd.default copy.default detach.default diagonal.default diagonal_backward.default
expand.default eye.default eye.m fill.Scalar fill.Tensor flip.default full.default
full_like.default lift_fresh_copy.default new_full.default new_ones.default
new_zeros.default ones.default
ones_like.default
permute.default pixel_shuffle.default pixel_unshuffle.default reflection_pad1d.default
reflection_pad1d_backward.default
reflection_pad2d.default reflection_pad2d_backward.default repeat.default
replication_pad1d.default replication_pad1d_backward.default replication_pad2d.default
replication_pad2d_backward.default reshape.default roll.default scalar_tensor.default
select.int select_backward.default slice.Tensor slice_backward.default slice_scatter.default
select_scatter.default split.Tensor split_with_sizes.default squeeze.default squeeze.dim
squeeze.dims stack.default t.default _to_copy.default transpose.int tril.default triu.default
unbind.int unfold.default unfold_backward.default _unsafe_view.default unsafe_split.Tensor
unsafe_split_with_sizes.default unsqueeze.default view.default zeros.default zeros_like.default
sym_numel.default sym_size.int
"""

_PRODUCTS = """
addbmm.default addmm.default addmv.default baddbmm.default bmm.default dot.default mm.default
mv.default
"""

_INDEXING = """
embedding.default embedding_dense_backward.default gather.default index.Tensor
index_add.default index_put.default index_select.default scatter.src
scatter.value scatter_add.default
"""

_LAYERS = """
_adaptive_avg_pool2d.default _adaptive_avg_pool2d_backward.default avg_pool2d.default
avg_pool2d_backward.default convolution.default convolution_backward.default
im2col.default col2im.default
max_pool2d_with_indices.default max_pool2d_with_indices_backward.default
_native_batch_norm_legit.no_stats _native_batch_norm_legit_functional.default
_native_batch_norm_legit_no_training.default native_batch_norm_backward.default
native_group_norm.default native_group_norm_backward.default native_layer_norm.default
native_layer_norm_backward.default _weight_norm_interface.default
_weight_norm_interface_backward.default
"""

_LOSSES = """
binary_cross_entropy.default binary_cross_entropy_backward.default
binary_cross_entropy_with_logits.default huber_loss.default huber_loss_backward.default
mse_loss.default mse_loss_backward.default nll_loss_backward.default
nll_loss_forward.default nll_loss2d_backward.default nll_loss2d_forward.default
smooth_l1_loss.default smooth_l1_loss_backward.default soft_margin_loss.default
soft_margin_loss_backward.default
"""

ATEN_OPERATORS: frozenset[str] = frozenset(
    f"aten.{name}"
    for group in (
        _POINTWISE, _ACTIVATIONS, _REDUCTIONS, _SHAPES, _PRODUCTS, _INDEXING, _LAYERS, _LOSSES
    )
    for name in group.split()
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

ITEM_OPERATOR = "item"
"""Takes one result of an operator that has several: `item(results, index)`."""

OPERATORS: frozenset[str] = ATEN_OPERATORS | NUMBER_OPERATORS | {ITEM_OPERATOR}
"""Everything that a node may call."""

WORDS: frozenset[str] = frozenset({"none", "tanh", "floor", "trunc", "sum", "mean"})
"""The only strings that an argument may be (modes of gelu and div, reductions)."""
