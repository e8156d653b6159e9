//! Each kernel against an oracle, on every driver that there is here.

#[path = "../common/mod.rs"]
mod common;

mod ablation;
mod conv_forward;
mod conv_image_gradient;
mod conv_input_gradient;
mod conv_weight_gradient;
mod kernel_apgd;
mod kernel_attack;
mod kernel_awp;
mod kernel_boundary;
mod kernel_data;
mod kernel_head;
mod kernel_head_ascent;
mod kernel_last_layer;
mod kernel_loss;
mod kernel_margin;
mod kernel_norm;
mod kernel_optimizer;
mod kernel_paired_loss;
mod kernel_rows;
mod kernel_select;
mod kernel_square;
mod wgmma_switches;
