//! Branches and loops: regions become blocks.

use super::Lowerer;
use lapidary_abi::program::{Place, Step, ValueIndex};
use lapidary_ir::NodeId;
use lapidary_ir::graph::Node;
use lapidary_ir::ops::OpError;

impl Lowerer {
    /// Writes the step of a node with regions.
    pub(super) fn control(&mut self, n: NodeId) -> Result<(), OpError> {
        let node = self.facts.module.node(n).clone();
        let step = match node.op.name {
            "if" => self.branch(&node)?,
            "loop" => self.repeat(&node)?,
            "scan" => return self.scan(&node),
            "sequence_map" => return self.map(&node),
            other => {
                return Err(OpError::new(format!("`{other}` has no lowering yet")));
            }
        };
        let results: Vec<ValueIndex> = node
            .results
            .iter()
            .map(|&v| self.declare(v, Place::Heap))
            .collect();
        let step = match step {
            Step::If {
                condition,
                then_block,
                else_block,
                ..
            } => Step::If {
                condition,
                then_block,
                else_block,
                results: results.clone(),
            },
            Step::Loop {
                trip_count,
                condition,
                carried,
                body,
                scan_types,
                ..
            } => Step::Loop {
                trip_count,
                condition,
                carried,
                body,
                results: results.clone(),
                scan_types,
            },
            other => other,
        };
        self.step(step);
        self.bind_results(&node.results, &results);
        Ok(())
    }

    fn branch(&mut self, node: &Node) -> Result<Step, OpError> {
        let condition = node
            .operand(0)
            .ok_or_else(|| OpError::new("has no condition"))?;
        let condition = self.stored(condition)?;
        let [then_region, else_region] = node.regions[..] else {
            return Err(OpError::new("needs two regions"));
        };
        Ok(Step::If {
            condition,
            then_block: self.block(then_region)?,
            else_block: self.block(else_region)?,
            results: vec![],
        })
    }

    fn repeat(&mut self, node: &Node) -> Result<Step, OpError> {
        let trip_count = node.operand(0).map(|v| self.stored(v)).transpose()?;
        let condition = node.operand(1).map(|v| self.stored(v)).transpose()?;
        let carried = node
            .operands
            .iter()
            .skip(2)
            .flatten()
            .map(|&v| self.stored(v))
            .collect::<Result<Vec<_>, _>>()?;
        let &[region] = node.regions.as_slice() else {
            return Err(OpError::new("needs one region"));
        };
        let body = self.block(region)?;
        let scans = &node.results[carried.len()..];
        let scan_types = scans
            .iter()
            .map(|&v| {
                let ty = self.facts.module.value(v).ty.clone();
                self.value_type(&ty)
            })
            .collect();
        Ok(Step::Loop {
            trip_count,
            condition,
            carried,
            body,
            results: vec![],
            scan_types,
        })
    }
}
