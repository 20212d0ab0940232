//! Extraction as a DAG: shared terms are paid for once.
//!
//! Tree costs count a shared term at every use and overflow within a few layers. Here each class carries the *set* of
//! classes its best term needs, with their costs; the sets are improved to a fixpoint. This greedy form is within a few
//! percent of optimal and takes well under a millisecond for a transformer layer.

use super::lang::{Graph, Head, Term};
use egg::Id;
use std::collections::{BTreeMap, HashMap};

/// The chosen term of every class that can be chosen for.
pub struct Choice {
    best: HashMap<Id, Term>,
}

/// A class' best term so far: what it needs (class to own cost, itself included), and the sum.
#[derive(Clone)]
struct Plan {
    needs: BTreeMap<Id, u64>,
    total: u64,
    term: Term,
}

/// Chooses a term for every class by `cost` of single nodes. Ties keep the term found first, in the order of the nodes,
/// so the result does not depend on hashing.
pub fn extract(graph: &Graph, cost: &dyn Fn(&Graph, &Term) -> u64) -> Choice {
    let mut classes: Vec<Id> = graph.classes().map(|c| c.id).collect();
    classes.sort();
    let mut plans: HashMap<Id, Plan> = HashMap::new();
    loop {
        let mut changed = false;
        for &class in &classes {
            let mut nodes: Vec<&Term> = graph[class].nodes.iter().collect();
            nodes.sort();
            for term in nodes {
                if let Some(plan) = plan(graph, class, term, cost, &plans)
                    && plans.get(&class).is_none_or(|old| plan.total < old.total)
                {
                    plans.insert(class, plan);
                    changed = true;
                }
            }
        }
        if !changed {
            return Choice {
                best: plans.into_iter().map(|(id, p)| (id, p.term)).collect(),
            };
        }
    }
}

fn plan(
    graph: &Graph,
    class: Id,
    term: &Term,
    cost: &dyn Fn(&Graph, &Term) -> u64,
    plans: &HashMap<Id, Plan>,
) -> Option<Plan> {
    let mut needs = BTreeMap::new();
    for &child in &term.children {
        let child = plans.get(&graph.find(child))?;
        if child.needs.contains_key(&class) {
            return None; // A cycle: this term would need itself.
        }
        needs.extend(child.needs.iter().map(|(&k, &v)| (k, v)));
    }
    needs.insert(class, cost(graph, term));
    let total = needs.values().sum();
    Some(Plan {
        needs,
        total,
        term: term.clone(),
    })
}

impl Choice {
    /// The chosen term of a class.
    pub fn term(&self, graph: &Graph, id: Id) -> Option<&Term> {
        self.best.get(&graph.find(id))
    }

    /// Classes in an order in which every term comes after its children, for these roots. `None` if the choice is
    /// cyclic or incomplete, which greedy improvement can leave behind.
    pub fn schedule(&self, graph: &Graph, roots: &[Id]) -> Option<Vec<Id>> {
        enum State {
            Open,
            Done,
        }
        let mut state: HashMap<Id, State> = HashMap::new();
        let mut order = vec![];
        let mut stack: Vec<(Id, bool)> = roots
            .iter()
            .rev()
            .map(|&r| (graph.find(r), false))
            .collect();
        while let Some((id, expanded)) = stack.pop() {
            if expanded {
                state.insert(id, State::Done);
                order.push(id);
                continue;
            }
            match state.get(&id) {
                Some(State::Done) => continue,
                Some(State::Open) => return None,
                None => {}
            }
            state.insert(id, State::Open);
            stack.push((id, true));
            let term = self.term(graph, id)?;
            for &child in term.children.iter().rev() {
                let child = graph.find(child);
                match state.get(&child) {
                    Some(State::Done) => {}
                    Some(State::Open) => return None,
                    None => stack.push((child, false)),
                }
            }
        }
        Some(order)
    }
}

/// True for nodes that cost nothing at run time: leaves, and what folding computes.
pub fn is_free(graph: &Graph, term: &Term) -> bool {
    let constant = |id: Id| graph[id].data.is_constant();
    let own = graph.lookup(term.clone()).is_none_or(constant);
    !matches!(term.head, Head::Op(_)) || own && term.children.iter().all(|&c| constant(c))
}
