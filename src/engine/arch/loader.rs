//! From a checkpoint to a network: [`serving`] packs the tensors for answering, [`training`] keeps them as they are. What a [`Family`] has
//! decides which tensors there must be.

use super::checkpoint::{Checkpoint, Names};
use super::config::DecoderConfig;
use super::family::Family;
use super::serving::{Block, Serving};
use super::training::{Layer, Norm, Projection, Ropes, Table, Training};
use super::{Network, Purpose};
use crate::engine::EngineError;
use crate::engine::gguf::Order;
use crate::engine::kernel::pool;
use crate::engine::kernel::tiles::Weight;
use crate::engine::nn::linear::Linear;
use candle_core::{Device, Tensor, Var};
use std::sync::{Arc, OnceLock};

/// A decoder that is being read.
pub(super) struct Loader<'a> {
    pub(super) file: &'a dyn Checkpoint,
    pub(super) names: Names,
    pub(super) family: &'static Family,
    pub(super) config: &'a DecoderConfig,
    /// q and k are interleaved in this file.
    pub(super) is_interleaved: bool,
    /// Added to the weights of norms.
    pub(super) norm_offset: f32,
    /// Output matrix and embeddings may be one.
    pub(super) may_tie: bool,
}

/// A linear layer of a block in the file: its name, width of its output and input, and heads whose rows are permuted.
struct Tensors {
    name: &'static str,
    outputs: usize,
    inputs: usize,
    permuted: Option<usize>,
}

impl Loader<'_> {
    /// Reads the network.
    ///
    /// # Errors
    /// [`EngineError::Model`] naming the tensor that is missing, unknown, malformed or of another shape.
    pub(super) fn load(&self, purpose: Purpose) -> Result<Network, EngineError> {
        self.names.check_all_known(self.file, self.family, self.config.layers)?;
        Ok(match purpose {
            Purpose::Serve | Purpose::ServeExact => Network::Serving(Box::new(self.serving(purpose == Purpose::ServeExact)?)),
            _ => Network::Training(Box::new(self.training(purpose)?)),
        })
    }

    /// The seven linear layers of a block, in forward order.
    fn linears(&self) -> [Tensors; 7] {
        let (heads, hidden, inner) = (self.config.heads, self.config.hidden, self.config.inner);
        let permuted = |heads: usize| self.is_interleaved.then_some(heads);
        let [q, k, v, o, gate, up, down] = self.names.linears;
        let of = |name, outputs, inputs, permuted| Tensors { name, outputs, inputs, permuted };
        [
            of(q, heads.query_width(), hidden, permuted(heads.queries)),
            of(k, heads.key_width(), hidden, permuted(heads.keys)),
            of(v, heads.key_width(), hidden, None),
            of(o, hidden, heads.query_width(), None),
            of(gate, inner, hidden, None),
            of(up, inner, hidden, None),
            of(down, hidden, inner, None),
        ]
    }

    fn serving(&self, exact: bool) -> Result<Serving, EngineError> {
        let config = self.config;
        let table = |name: &str| self.file.weight(name, (config.vocabulary, config.hidden), &|row| row, exact).map(Arc::new);
        // As many threads as there are cores share the rows of the tables, then the blocks.
        let blocks: Vec<_> = (0..config.layers).map(|_| OnceLock::new()).collect();
        let threads = pool::Pool::new(0).map_err(|_| EngineError::Stopped)?;
        let (embed_tokens, lm_head) = threads.install(|| {
            let embed_tokens = table(self.names.embed_tokens)?;
            let lm_head = if self.has_head()? { table(self.names.lm_head)? } else { embed_tokens.clone() };
            pool::each(config.layers, |layer| drop(blocks[layer].set(self.block(layer, exact))));
            Ok::<_, EngineError>((embed_tokens, lm_head))
        })?;
        let packed = "every block was packed above";
        let blocks = blocks.into_iter().map(|block| block.into_inner().expect(packed)).collect::<Result<_, _>>()?;
        Ok(Serving::new(embed_tokens, lm_head, blocks, self.norm(self.names.norm, config.hidden)?))
    }

    /// Whether the output matrix is one of its own.
    fn has_head(&self) -> Result<bool, EngineError> {
        let name = self.names.lm_head;
        match (self.file.has(name), self.may_tie) {
            (true, _) => Ok(true),
            (false, true) => Ok(false),
            (false, false) => {
                Err(self.file.problem(format!("tensor {name} is missing, and the configuration does not tie it to the embeddings")))
            }
        }
    }

    /// The weight of a norm.
    fn norm(&self, name: &str, width: usize) -> Result<Vec<f32>, EngineError> {
        let mut weight = self.file.vector(name, width)?;
        weight.iter_mut().for_each(|x| *x += self.norm_offset);
        Ok(weight)
    }

    fn block(&self, layer: usize, exact: bool) -> Result<Block, EngineError> {
        let (config, family, names) = (self.config, self.family, &self.names);
        let load = |linear: &Tensors| self.packed(&names.of(layer, linear.name, "weight"), linear, exact);
        let linears = self.linears();
        let [q, k, v, o, gate, up, down] = &linears;
        let norm = |name: &str, width: usize| self.norm(&names.of(layer, name, "weight"), width);
        let output_norm = |name: &str| family.has_output_norms.then(|| norm(name, config.hidden)).transpose();
        let head_norms = || -> Result<[Vec<f32>; 2], EngineError> {
            let [queries, keys] = names.head_norms;
            Ok([norm(queries, config.heads.width)?, norm(keys, config.heads.width)?])
        };
        Ok(Block {
            input_layernorm: norm(names.input_norm, config.hidden)?,
            qkv: [load(q)?, load(k)?, load(v)?],
            qkv_bias: if family.has_biases { Some(self.bias(layer, &linears[..3])?) } else { None },
            head_norms: if family.has_head_norms { Some(head_norms()?) } else { None },
            o_proj: load(o)?,
            attention_output_norm: output_norm(names.attention_output_norm)?,
            feed_forward_norm: norm(names.feed_forward_norm, config.hidden)?,
            gate_up: [load(gate)?, load(up)?],
            down_proj: load(down)?,
            feed_forward_output_norm: output_norm(names.feed_forward_output_norm)?,
        })
    }

    /// Biases of linear layers, side by side.
    fn bias(&self, layer: usize, linears: &[Tensors]) -> Result<Vec<f32>, EngineError> {
        let mut all = Vec::new();
        for linear in linears {
            let bias = self.file.vector(&self.names.of(layer, linear.name, "bias"), linear.outputs)?;
            let at = |row: usize| bias[linear.permuted.map_or(row, |heads| permuted(row, linear.outputs / heads))];
            all.extend((0..linear.outputs).map(at));
        }
        Ok(all)
    }

    fn training(&self, purpose: Purpose) -> Result<Training, EngineError> {
        let (config, names) = (self.config, &self.names);
        check_trainable(config)?;
        let of = |name| Tensors { name, outputs: config.vocabulary, inputs: config.hidden, permuted: None };
        let embed_tokens = match purpose {
            Purpose::TrainQuantised => Table::Packed(Arc::new(self.packed(names.embed_tokens, &of(names.embed_tokens), false)?)),
            _ => Table::Exact(kept(self.file.tensor(names.embed_tokens, &[config.vocabulary, config.hidden])?, purpose)?),
        };
        let lm_head = match (self.has_head()?, &embed_tokens) {
            (true, _) => self.trained(names.lm_head, &of(names.lm_head), purpose)?,
            (false, Table::Packed(table)) => Linear::quantised(table.clone()),
            (false, Table::Exact(table)) if purpose != Purpose::TrainRounded => Linear::new(table.clone())?,
            (false, Table::Exact(_)) => self.trained(names.embed_tokens, &of(names.embed_tokens), purpose)?,
        };
        let mut paths = config.lora_targets().into_iter().map(|target| target.path);
        let mut layers = Vec::new();
        for layer in 0..config.layers {
            layers.push(self.layer(layer, &mut paths, purpose)?);
        }
        let norm = self.trained_norm(names.norm, config.hidden, purpose)?;
        let ropes = Ropes::new(config, config.trained_positions());
        Ok(Training::new(config, (embed_tokens, lm_head), layers, norm, ropes)?)
    }

    /// A block for training; `paths` are the names of its linear layers, and of those behind them.
    fn layer(&self, layer: usize, paths: &mut dyn Iterator<Item = String>, purpose: Purpose) -> Result<Layer, EngineError> {
        let (config, family, names) = (self.config, self.family, &self.names);
        let mut projections = Vec::new();
        for (i, linear) in self.linears().iter().enumerate() {
            let bias = if family.has_biases && i < 3 { Some(self.bias(layer, std::slice::from_ref(linear))?) } else { None };
            let bias = bias.map(|bias| kept(Tensor::from_vec(bias, linear.outputs, &Device::Cpu)?, purpose)).transpose()?;
            let linear = self.trained(&names.of(layer, linear.name, "weight"), linear, purpose)?;
            projections.push(Projection { path: paths.next().unwrap_or_default(), linear, bias });
        }
        let Ok(projections) = projections.try_into() else { unreachable!("linears gives seven") };
        let norm = |name: &str, width: usize| self.trained_norm(&names.of(layer, name, "weight"), width, purpose);
        let output_norm = |name: &str| family.has_output_norms.then(|| norm(name, config.hidden)).transpose();
        let head_norms = || -> Result<[Norm; 2], EngineError> {
            let [queries, keys] = names.head_norms;
            Ok([norm(queries, config.heads.width)?, norm(keys, config.heads.width)?])
        };
        Ok(Layer {
            input_layernorm: norm(names.input_norm, config.hidden)?,
            projections,
            head_norms: if family.has_head_norms { Some(head_norms()?) } else { None },
            attention_output_norm: output_norm(names.attention_output_norm)?,
            feed_forward_norm: norm(names.feed_forward_norm, config.hidden)?,
            feed_forward_output_norm: output_norm(names.feed_forward_output_norm)?,
        })
    }

    /// A norm for training.
    fn trained_norm(&self, name: &str, width: usize, purpose: Purpose) -> Result<Norm, EngineError> {
        let mut norm = Norm::new(self.norm(name, width)?, self.family.norm_offset, self.config.norm_epsilon)?;
        norm.weight = kept(norm.weight, purpose)?;
        Ok(norm)
    }

    /// A linear layer for training.
    fn trained(&self, name: &str, linear: &Tensors, purpose: Purpose) -> Result<Linear, EngineError> {
        if purpose == Purpose::TrainQuantised {
            return Ok(Linear::quantised(Arc::new(self.packed(name, linear, false)?)));
        }
        let mut weight = self.file.tensor(name, &[linear.outputs, linear.inputs])?;
        if let Some(heads) = linear.permuted {
            weight = unpermuted(&weight, heads)?;
        }
        if purpose != Purpose::TrainRounded {
            return Ok(Linear::new(kept(weight, purpose)?)?);
        }
        Ok(Linear::served(weight, self.packed(name, linear, false)?)?)
    }

    /// A linear layer for serving.
    fn packed(&self, name: &str, linear: &Tensors, exact: bool) -> Result<Weight, EngineError> {
        let order: Order<'_> = match linear.permuted {
            Some(heads) => &move |row| permuted(row, linear.outputs / heads),
            None => &|row| row,
        };
        self.file.weight(name, (linear.outputs, linear.inputs), order, exact)
    }
}

/// A tensor, as a variable where the weights are trained themselves.
fn kept(tensor: Tensor, purpose: Purpose) -> candle_core::Result<Tensor> {
    if purpose == Purpose::TrainWeights { Ok(Var::from_tensor(&tensor)?.as_tensor().clone()) } else { Ok(tensor) }
}

/// Refuses what [`Training`] does not compute.
pub(super) fn check_trainable(config: &DecoderConfig) -> Result<(), EngineError> {
    if config.logit_cap.is_none() {
        return Ok(());
    }
    let architecture = &config.architecture;
    Err(EngineError::Unsupported(format!(
        "architecture \"{architecture}\" answers here, but nothing can be trained on it: training does not compute final_logit_softcapping"
    )))
}

/// The file's row for row `row` of the checkpoint, with interleaved heads of `width` rows.
fn permuted(row: usize, width: usize) -> usize {
    let (head, inside, half) = (row / width, row % width, width / 2);
    head * width + if inside < half { 2 * inside } else { 2 * (inside - half) + 1 }
}

/// The rows of a checkpoint's matrix (or bias) in the order of a file that interleaves them.
///
/// # Errors
/// When they are no whole heads.
pub fn interleaved(tensor: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let outputs = tensor.dim(0)?;
    let mut rows = vec![0u32; outputs];
    (0..outputs).for_each(|row| rows[permuted(row, outputs / heads)] = row as u32);
    tensor.contiguous()?.index_select(&Tensor::from_vec(rows, outputs, tensor.device())?, 0)
}

/// The rows of a file's matrix in the checkpoint's order.
///
/// # Errors
/// When they are no whole heads.
pub fn unpermuted(weight: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let outputs = weight.dim(0)?;
    let rows: Vec<u32> = (0..outputs).map(|row| permuted(row, outputs / heads) as u32).collect();
    weight.index_select(&Tensor::from_vec(rows, outputs, weight.device())?, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn unpermuting_brings_the_pairs_of_a_head_back_to_its_halves() {
        // One head of width 4: GGUF interleaves (0, 2, 1, 3).
        let weight = Tensor::new(&[[0f32], [2.0], [1.0], [3.0]], &Device::Cpu).expect("tensor");
        let rows = unpermuted(&weight, 1).expect("unpermutes").flatten_all().expect("flat");
        assert_eq!(rows.to_vec1::<f32>().expect("values"), [0.0, 1.0, 2.0, 3.0]);
        let again = interleaved(&rows, 1).expect("interleaves");
        assert_eq!(again.to_vec1::<f32>().expect("values"), [0.0, 2.0, 1.0, 3.0]);
    }
}
