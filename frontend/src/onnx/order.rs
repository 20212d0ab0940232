//! Puts a graph's nodes into an order in which every value is defined before it is used.

use super::proto::{GraphProto, NodeProto};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

/// Positions of `nodes` in order of definition: the given order where it is one already. An error lists
/// the nodes of a cycle, or a value defined twice.
pub fn definition_order(nodes: &[NodeProto]) -> Result<Vec<usize>, String> {
    let mut producers: HashMap<&str, usize> = HashMap::new();
    for (i, node) in nodes.iter().enumerate() {
        for name in node.output.iter().filter(|n| !n.is_empty()) {
            if producers.insert(name, i).is_some() {
                return Err(format!("value `{name}` is defined twice"));
            }
        }
    }
    let mut waits = vec![0usize; nodes.len()];
    let mut users: Vec<Vec<usize>> = vec![vec![]; nodes.len()];
    for (i, node) in nodes.iter().enumerate() {
        let needed: HashSet<usize> = used_names(node)
            .into_iter()
            .filter_map(|n| producers.get(n).copied())
            .collect();
        waits[i] = needed.len();
        needed.into_iter().for_each(|p| users[p].push(i));
    }
    // The heap gives the earliest ready node, so a valid order stays as it is.
    let mut ready: BinaryHeap<Reverse<usize>> = (0..nodes.len())
        .filter(|&i| waits[i] == 0)
        .map(Reverse)
        .collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(Reverse(i)) = ready.pop() {
        order.push(i);
        for &user in &users[i] {
            waits[user] -= 1;
            if waits[user] == 0 {
                ready.push(Reverse(user));
            }
        }
    }
    if order.len() == nodes.len() {
        Ok(order)
    } else {
        Err(describe_cycle(nodes, &waits, &producers))
    }
}

/// Names that a node uses: operands, and what its subgraphs take from outside.
fn used_names(node: &NodeProto) -> Vec<&str> {
    let mut names: Vec<&str> = node
        .input
        .iter()
        .filter(|n| !n.is_empty())
        .map(String::as_str)
        .collect();
    for attribute in &node.attribute {
        attribute
            .g
            .iter()
            .chain(&attribute.graphs)
            .for_each(|g| names.extend(captured(g)));
    }
    names
}

/// Names that a subgraph uses but does not define.
fn captured(graph: &GraphProto) -> Vec<&str> {
    let inputs = graph.input.iter().map(|v| v.name.as_str());
    let weights = graph.initializer.iter().map(|t| t.name.as_str());
    let sparse = graph
        .sparse_initializer
        .iter()
        .filter_map(|t| Some(t.values.as_ref()?.name.as_str()));
    let results = graph
        .node
        .iter()
        .flat_map(|n| n.output.iter().map(String::as_str));
    let own: HashSet<&str> = inputs.chain(weights).chain(sparse).chain(results).collect();
    let used = graph
        .node
        .iter()
        .flat_map(used_names)
        .chain(graph.output.iter().map(|v| v.name.as_str()));
    used.filter(|n| !own.contains(n)).collect()
}

/// Follows unmet needs from any stuck node until one repeats.
fn describe_cycle(
    nodes: &[NodeProto],
    waits: &[usize],
    producers: &HashMap<&str, usize>,
) -> String {
    let mut path = vec![];
    let mut at = waits.iter().position(|&w| w > 0).unwrap_or(0);
    while !path.contains(&at) {
        path.push(at);
        let needs = used_names(&nodes[at]);
        match needs
            .iter()
            .filter_map(|n| producers.get(n).copied())
            .find(|&p| waits[p] > 0)
        {
            Some(next) => at = next,
            None => break,
        }
    }
    let start = path.iter().position(|&i| i == at).unwrap_or(0);
    let cycle: Vec<String> = path[start..]
        .iter()
        .take(10)
        .map(|&i| format!("`{}`", label(&nodes[i])))
        .collect();
    format!(
        "nodes depend on each other in a cycle: {}",
        cycle.join(", ")
    )
}

/// A node's name, or the operator and first result of one without.
pub fn label(node: &NodeProto) -> String {
    match (
        node.name.as_str(),
        node.output.iter().find(|o| !o.is_empty()),
    ) {
        ("", Some(out)) => format!("{}({out})", node.op_type),
        ("", None) => node.op_type.clone(),
        (name, _) => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, input: &[&str], output: &str) -> NodeProto {
        let input = input.iter().map(|s| s.to_string()).collect();
        NodeProto {
            name: name.into(),
            input,
            output: vec![output.into()],
            ..NodeProto::default()
        }
    }

    #[test]
    fn order_is_kept_repaired_or_refused() {
        let a = node("a", &["x"], "1");
        let b = node("b", &["1"], "2");
        let c = node("c", &["1", "2"], "3");
        assert_eq!(
            definition_order(&[a.clone(), b.clone(), c.clone()]),
            Ok(vec![0, 1, 2])
        );
        assert_eq!(definition_order(&[c, b, a]), Ok(vec![2, 1, 0]));
        let cycle = [
            node("p", &["r"], "q"),
            node("s", &["q"], "r"),
            node("after", &["r"], "z"),
        ];
        assert_eq!(
            definition_order(&cycle),
            Err("nodes depend on each other in a cycle: `p`, `s`".into())
        );
        let twice = [node("a", &[], "1"), node("b", &[], "1")];
        assert_eq!(
            definition_order(&twice),
            Err("value `1` is defined twice".into())
        );
    }

    #[test]
    fn subgraphs_count_as_users() {
        let body = GraphProto {
            node: vec![node("inner", &["late", "own"], "own2")],
            ..GraphProto::default()
        };
        let mut outer = node("if", &["c"], "y");
        outer.attribute.push(super::super::proto::AttributeProto {
            g: Some(body),
            ..Default::default()
        });
        assert_eq!(
            definition_order(&[outer, node("l", &["x"], "late")]),
            Ok(vec![1, 0])
        );
    }
}
