//! The pass: load a block, saturate, extract, put the result in its place.

use super::blocks::{blocks, sink_constants};
use super::cost::cost;
use super::extract::{Choice, extract};
use super::lang::{Fact, Facts, Graph, Head, Query, Term};
use super::single::split_to_slices;
use super::traits::{self, Traits};
use crate::rules::reading::OTHER;
use crate::rules::{Bound, Class, Right, Rule};
use egg::{
    Applier, Id, Pattern, PatternAst, RecExpr, Rewrite, Runner, SearchMatches, Searcher,
    SimpleScheduler, Subst, Symbol, Var,
};
use lapidary_ir::graph::Def;
use lapidary_ir::infer::{first_fresh, infer_module};
use lapidary_ir::ops::Op;
use lapidary_ir::target::Target;
use lapidary_ir::{Attrs, Constant, Module, NodeId, RegionId, ValueId};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Limits are counts, not seconds, so that results are the same on every run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most e-nodes of a block.
    pub nodes: usize,
    /// Most rounds of a block.
    pub rounds: usize,
    /// Accept rules that change rounding.
    pub reassociate: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            nodes: 20_000,
            rounds: 12,
            reassociate: true,
        }
    }
}

/// What happened.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Rule to number of applications.
    pub fired: BTreeMap<&'static str, usize>,
    /// Rule and reason to number of matches that the rule refused.
    pub refused: BTreeMap<(&'static str, &'static str), usize>,
    /// Blocks in all.
    pub blocks: usize,
    /// Blocks that were saturated; the others are equal to one of these.
    pub distinct: usize,
    /// Blocks whose program was replaced by a cheaper one.
    pub improved: usize,
    /// E-nodes of the largest block.
    pub largest: usize,
}

/// Rewrites every region of a module.
pub fn saturate(
    module: &mut Module,
    target: &Target,
    options: &Options,
    rules: &[&'static Rule],
) -> Report {
    let log = Arc::new(Mutex::new(Report::default()));
    let rewrites = compile_rules(rules, options, &log);
    let mut parts = HashMap::new();
    split_to_slices(module, &mut parts);
    rename(module, &parts);
    let mut solved: HashMap<String, Option<Recipe>> = HashMap::new();
    // What every block needs to know of the whole module is found once, and what a block's outputs became is
    // told to the others at the end: work grows with the module, not with its square.
    let uses = Uses::new(module);
    let known = traits::of_module(module);
    let fresh = Cell::new(first_fresh(module));
    let mut renamed: HashMap<ValueId, ValueId> = HashMap::new();
    for region in module.reachable_regions() {
        sink_constants(module, region);
        // Blocks are replaced from the last to the first, so that earlier positions stay valid.
        for range in blocks(module, region).into_iter().rev() {
            let block = Block::new(module, &uses, region, range);
            log.lock().expect("no holder panics").blocks += 1;
            let recipe = solved.entry(block.key(module, &known)).or_insert_with(|| {
                solve(
                    module,
                    &known,
                    fresh.get(),
                    &block,
                    target,
                    options,
                    &rewrites,
                    &log,
                )
            });
            if let Some(recipe) = recipe {
                instantiate(module, &fresh, region, &block, recipe, &mut renamed);
                log.lock().expect("no holder panics").improved += 1;
            }
        }
    }
    rename(module, &renamed);
    module.remove_dead_nodes();
    infer_module(module);
    drop(rewrites);
    Arc::into_inner(log)
        .expect("the rewrites that shared it are gone")
        .into_inner()
        .expect("no holder panics")
}

/// Tells every user of a replaced value what it became.
fn rename(module: &mut Module, renamed: &HashMap<ValueId, ValueId>) {
    let current = |mut v: ValueId| {
        while let Some(&next) = renamed.get(&v) {
            v = next;
        }
        v
    };
    for r in module.reachable_regions() {
        for v in &mut module.region_mut(r).outputs {
            *v = current(*v);
        }
        for n in module.region(r).nodes.clone() {
            for v in module.node_mut(n).operands.iter_mut().flatten() {
                *v = current(*v);
            }
        }
    }
}

/// Who uses each value, in the module as it is before blocks are replaced.
struct Uses {
    users: HashMap<ValueId, Vec<NodeId>>,
    yielded: HashSet<ValueId>,
}

impl Uses {
    fn new(module: &Module) -> Uses {
        let mut uses = Uses {
            users: HashMap::new(),
            yielded: HashSet::new(),
        };
        for r in module.reachable_regions() {
            uses.yielded.extend(&module.region(r).outputs);
            for &n in &module.region(r).nodes {
                for &v in module.node(n).operands.iter().flatten() {
                    uses.users.entry(v).or_default().push(n);
                }
            }
        }
        uses
    }

    /// True if a value is used by anything but these nodes.
    fn outside(&self, v: ValueId, own: &HashSet<NodeId>) -> bool {
        let users = self.users.get(&v);
        self.yielded.contains(&v) || users.is_some_and(|u| u.iter().any(|n| !own.contains(n)))
    }
}

/// A run of nodes, the values it takes and those it gives.
struct Block {
    range: Range<usize>,
    nodes: Vec<NodeId>,
    leaves: Vec<ValueId>,
    outputs: Vec<ValueId>,
}

impl Block {
    fn new(module: &Module, uses: &Uses, region: RegionId, range: Range<usize>) -> Block {
        let nodes = module.region(region).nodes[range.clone()].to_vec();
        let own: HashSet<NodeId> = nodes.iter().copied().collect();
        let defined: HashSet<ValueId> = nodes.iter().map(|&n| module.node(n).results[0]).collect();
        let mut leaves = vec![];
        let mut seen = HashSet::new();
        for &n in &nodes {
            for &v in module.node(n).operands.iter().flatten() {
                if !defined.contains(&v) && seen.insert(v) {
                    leaves.push(v);
                }
            }
        }
        let outputs = nodes
            .iter()
            .map(|&n| module.node(n).results[0])
            .filter(|v| uses.outside(*v, &own))
            .collect();
        Block {
            range,
            nodes,
            leaves,
            outputs,
        }
    }

    /// What is known of the leaves.
    fn facts(&self, module: &Module, known: &HashMap<ValueId, Traits>, first_fresh: u32) -> Facts {
        let mut facts = Facts::new(first_fresh);
        for &leaf in &self.leaves {
            let constant = module.as_constant(leaf).map(|c| Arc::new(c.clone()));
            let traits = known.get(&leaf).copied().unwrap_or_default();
            let leaf_facts = (module.value(leaf).ty.clone(), constant, traits);
            facts.leaves.insert(leaf, leaf_facts);
        }
        facts
    }

    /// Equal for blocks of equal structure: ops, attributes, wiring, leaf types, the contents of small constants and the
    /// traits of all others.
    fn key(&self, module: &Module, known: &HashMap<ValueId, Traits>) -> String {
        use std::fmt::Write;
        let mut names: HashMap<ValueId, usize> = HashMap::new();
        let mut key = String::new();
        for &leaf in &self.leaves {
            names.insert(leaf, names.len());
            let _ = write!(key, "{}", module.value(leaf).ty);
            match module.as_constant(leaf) {
                Some(c) if c.is_compressed() => key.push_str("=compressed"),
                Some(c) if traits::is_visible(c) => {
                    let _ = write!(key, "={:?}", c.encoding());
                }
                Some(_) => key.push_str("=constant"),
                None => {}
            }
            let _ = write!(key, "{:?}", known.get(&leaf));
            key.push(';');
        }
        for &n in &self.nodes {
            let node = module.node(n);
            let operands: Vec<Option<usize>> =
                node.operands.iter().map(|o| o.map(|v| names[&v])).collect();
            let _ = write!(key, "{}{:?}{:?};", node.op, operands, node.attrs);
            names.insert(node.results[0], names.len());
        }
        let _ = write!(
            key,
            "{:?}",
            self.outputs.iter().map(|v| names[v]).collect::<Vec<_>>()
        );
        key
    }
}

/// A cheaper program for a block, in terms of its leaves.
struct Recipe {
    steps: Vec<Step>,
    /// Step that gives each output.
    outputs: Vec<usize>,
}

enum Step {
    Leaf(usize),
    Constant(Arc<Constant>),
    Absent,
    Op {
        op: Op,
        operands: Vec<usize>,
        attrs: Attrs,
    },
}

#[allow(
    clippy::too_many_arguments,
    reason = "what a block, the target and the options are"
)]
fn solve(
    module: &Module,
    known: &HashMap<ValueId, Traits>,
    first_fresh: u32,
    block: &Block,
    target: &Target,
    options: &Options,
    rewrites: &[Rewrite<Term, Facts>],
    log: &Mutex<Report>,
) -> Option<Recipe> {
    let mut graph = Graph::new(block.facts(module, known, first_fresh));
    let ids = load(module, block, &mut graph);
    let roots: Vec<Id> = block.outputs.iter().map(|v| ids[v]).collect();
    // What the nodes cost as they are: equal ones are one class, but are computed twice.
    let before: u64 = block
        .nodes
        .iter()
        .map(|n| {
            let class = graph.find(ids[&module.node(*n).results[0]]);
            let terms = graph[class].nodes.iter();
            terms.map(|t| cost(target, &graph, t)).min().unwrap_or(0)
        })
        .sum();
    let runner = Runner::<Term, Facts>::new(Facts::default())
        .with_egraph(graph)
        .with_node_limit(options.nodes)
        .with_iter_limit(options.rounds)
        .with_time_limit(std::time::Duration::from_secs(3600))
        .with_scheduler(SimpleScheduler)
        .run(rewrites);
    let graph = runner.egraph;
    {
        let mut log = log.lock().expect("no holder panics");
        log.distinct += 1;
        log.largest = log.largest.max(graph.total_size());
    }
    let choice = extract(&graph, &|g, t| cost(target, g, t));
    let recipe = recipe(&graph, &choice, block, &roots)?;
    let after: u64 = choice
        .schedule(&graph, &roots)?
        .iter()
        .filter_map(|&c| choice.term(&graph, c))
        .map(|t| cost(target, &graph, t))
        .sum();
    (after < before).then_some(recipe)
}

/// Adds a block's nodes; the class of every value.
fn load(module: &Module, block: &Block, graph: &mut Graph) -> HashMap<ValueId, Id> {
    let mut ids = HashMap::new();
    for &leaf in &block.leaves {
        ids.insert(
            leaf,
            graph.add(Term {
                head: Head::Value(leaf),
                children: vec![],
            }),
        );
    }
    for &n in &block.nodes {
        let node = module.node(n);
        let mut children: Vec<Id> = node
            .operands
            .iter()
            .map(|o| match o {
                Some(v) => ids[v],
                None => graph.add(Term {
                    head: Head::Absent,
                    children: vec![],
                }),
            })
            .collect();
        if node.op.arity().1 != usize::MAX {
            let absent = graph.add(Term {
                head: Head::Absent,
                children: vec![],
            });
            children.resize(node.op.operands_in_rules().max(children.len()), absent);
        }
        let attrs = graph.analysis.intern(&node.attrs);
        children.push(graph.add(Term {
            head: Head::Attrs(attrs),
            children: vec![],
        }));
        let id = graph.add(Term {
            head: Head::Op(node.op),
            children,
        });
        ids.insert(node.results[0], id);
    }
    graph.rebuild();
    ids
}

fn recipe(graph: &Graph, choice: &Choice, block: &Block, roots: &[Id]) -> Option<Recipe> {
    let order = choice.schedule(graph, roots)?;
    let mut position: HashMap<Id, usize> = HashMap::new();
    let mut steps = vec![];
    for class in order {
        let term = choice.term(graph, class)?;
        let step = match &term.head {
            Head::Value(v) => Step::Leaf(block.leaves.iter().position(|l| l == v)?),
            Head::Made(n) => Step::Constant(graph.analysis.made[*n].clone()),
            Head::Absent => Step::Absent,
            Head::Attrs(_) => continue,
            Head::Op(op) => {
                let (&attrs, operands) = term.children.split_last()?;
                let operands = operands
                    .iter()
                    .map(|&o| position.get(&graph.find(o)).copied())
                    .collect::<Option<_>>()?;
                Step::Op {
                    op: *op,
                    operands,
                    attrs: graph.attrs(attrs)?.clone(),
                }
            }
        };
        position.insert(class, steps.len());
        steps.push(step);
    }
    let outputs = roots
        .iter()
        .map(|&r| position.get(&graph.find(r)).copied())
        .collect::<Option<_>>()?;
    Some(Recipe { steps, outputs })
}

/// Replaces a block's nodes by a recipe's.
fn instantiate(
    module: &mut Module,
    fresh: &Cell<u32>,
    region: RegionId,
    block: &Block,
    recipe: &Recipe,
    renamed: &mut HashMap<ValueId, ValueId>,
) {
    let mut values: Vec<Option<ValueId>> = vec![];
    let mut nodes = vec![];
    // New nodes keep the name of the block's last node of the same op, or of its last node, for messages.
    let name_of = |module: &Module, op: Op| {
        let like = block
            .nodes
            .iter()
            .rev()
            .find(|&&n| module.node(n).op == op)
            .or(block.nodes.last());
        like.map(|&n| module.node(n).name.clone())
            .unwrap_or_default()
    };
    for step in &recipe.steps {
        values.push(match step {
            Step::Leaf(n) => Some(block.leaves[*n]),
            Step::Constant(c) => Some(module.add_constant("", (**c).clone())),
            Step::Absent => None,
            Step::Op {
                op,
                operands,
                attrs,
            } => {
                let name = name_of(module, *op);
                let mut operands: Vec<Option<ValueId>> =
                    operands.iter().map(|&o| values[o]).collect();
                while operands.last() == Some(&None) {
                    operands.pop();
                }
                let id = module.make_node(*op, &name, operands, attrs.clone(), vec![], vec![]);
                let mut types =
                    lapidary_ir::builder::infer_node(module, id, fresh).unwrap_or_default();
                types.truncate(1);
                module.set_result_types(id, types);
                nodes.push(id);
                module.node(id).results.first().copied()
            }
        });
    }
    for (&old, &step) in block.outputs.iter().zip(&recipe.outputs) {
        if let Some(new) = values[step]
            && new != old
        {
            if matches!(module.value(new).def, Def::Result(..)) {
                let (name, ty) = (module.value(old).name.clone(), module.value(old).ty.clone());
                let info = module.value_mut(new);
                info.name = name;
                info.ty = ty;
            }
            renamed.insert(old, new);
        }
    }
    module
        .region_mut(region)
        .nodes
        .splice(block.range.clone(), nodes);
}

fn compile_rules(
    rules: &[&'static Rule],
    options: &Options,
    log: &Arc<Mutex<Report>>,
) -> Vec<Rewrite<Term, Facts>> {
    let accepted = rules
        .iter()
        .filter(|r| options.reassociate || r.class == Class::Exact);
    let each_left = accepted.flat_map(|&rule| {
        rule.left
            .iter()
            .enumerate()
            .map(move |(i, &left)| (rule, i, left))
    });
    each_left
        .map(|(rule, i, left)| {
            // egg wants every left side to have a name of its own.
            let name = format!("{}#{i}", rule.name);
            let right = match rule.right {
                Right::Pattern(text) => Some(
                    text.parse()
                        .expect("the rule table's right sides are checked by a test"),
                ),
                Right::Build(_) => None,
            };
            let applier = RuleApplier {
                rule,
                right,
                log: log.clone(),
            };
            let made = match Op::named(left) {
                Some(op) => Rewrite::new(name, Every(op), applier),
                None => {
                    let left: Pattern<Term> = left
                        .parse()
                        .expect("the rule table's left sides are checked by a test");
                    Rewrite::new(name, left, applier)
                }
            };
            made.expect("every variable on the right is bound on the left")
        })
        .collect()
}

/// Finds every node of an op. Its operands are bound to `?#0`, `?#1`, …, its attributes to `?at`.
struct Every(Op);

impl Searcher<Term, Facts> for Every {
    fn search_eclass_with_limit(
        &self,
        graph: &Graph,
        class: Id,
        limit: usize,
    ) -> Option<SearchMatches<'_, Term>> {
        let nodes = graph[class].nodes.iter();
        let substs: Vec<Subst> = nodes
            .filter(|t| t.head == Head::Op(self.0))
            .take(limit)
            .filter_map(|t| {
                let (&attrs, operands) = t.children.split_last()?;
                let mut subst = Subst::with_capacity(t.children.len());
                for (i, &operand) in operands.iter().enumerate() {
                    subst.insert(Var::from_u32(i as u32), operand);
                }
                subst.insert("?at".parse().ok()?, attrs);
                Some(subst)
            })
            .collect();
        (!substs.is_empty()).then_some(SearchMatches {
            eclass: class,
            substs,
            ast: None,
        })
    }

    fn vars(&self) -> Vec<Var> {
        vec![]
    }
}

struct RuleApplier {
    rule: &'static Rule,
    right: Option<Pattern<Term>>,
    log: Arc<Mutex<Report>>,
}

impl Applier<Term, Facts> for RuleApplier {
    fn apply_one(
        &self,
        graph: &mut Graph,
        class: Id,
        subst: &Subst,
        ast: Option<&PatternAst<Term>>,
        name: Symbol,
    ) -> Vec<Id> {
        let bound = Bound { subst };
        let outcome = match self.rule.condition.map_or(Ok(()), |c| c(graph, &bound)) {
            Err(why) => Err(why),
            Ok(()) => match (&self.right, self.rule.right) {
                (Some(pattern), _) => Ok(pattern.apply_one(graph, class, subst, ast, name)),
                (None, Right::Build(build)) => build(graph, &bound).and_then(|new| {
                    // A replacement of another type would be a wrong rule; refusing it keeps the program right.
                    let same = same_type(&graph[class].data, &graph[new].data);
                    if !same {
                        return Err("the replacement has another type");
                    }
                    Ok(if graph.union(class, new) {
                        vec![graph.find(new)]
                    } else {
                        vec![]
                    })
                }),
                (None, Right::Pattern(_)) => unreachable!("compiled above"),
            },
        };
        let mut log = self.log.lock().expect("no holder panics");
        match outcome {
            Ok(changed) => {
                if !changed.is_empty() {
                    *log.fired.entry(self.rule.name).or_default() += 1;
                }
                changed
            }
            Err(OTHER) => vec![],
            Err(why) => {
                *log.refused.entry((self.rule.name, why)).or_default() += 1;
                vec![]
            }
        }
    }

    fn vars(&self) -> Vec<Var> {
        self.right.as_ref().map(|p| p.vars()).unwrap_or_default()
    }
}

/// True if two classes may be the same value: equal element types and shapes, as far as both are known.
fn same_type(a: &Fact, b: &Fact) -> bool {
    match (&a.ty, &b.ty) {
        (Some(a), Some(b)) => {
            a.elem() == b.elem()
                && match (a.shape(), b.shape()) {
                    (Some(a), Some(b)) => {
                        a.len() == b.len()
                            && a.iter().zip(b).all(|(x, y)| {
                                x == y || x.as_const().is_none() || y.as_const().is_none()
                            })
                    }
                    _ => true,
                }
        }
        _ => false,
    }
}

/// Applies one rule where it matches the definition of the module's only output, whatever it costs; false if it did not
/// fire. For the soundness test of the table.
#[cfg(test)]
pub(crate) fn force(module: &mut Module, rule: &'static Rule) -> bool {
    let log = Arc::new(Mutex::new(Report::default()));
    let rewrites = compile_rules(&[rule], &Options::default(), &log);
    let (uses, known) = (Uses::new(module), traits::of_module(module));
    let block = Block::new(module, &uses, Module::TOP, 0..module.top().nodes.len());
    let mut graph = Graph::new(block.facts(module, &known, first_fresh(module)));
    let ids = load(module, &block, &mut graph);
    let root = ids[&block.outputs[0]];
    let original = graph[root].nodes[0].clone();
    let runner = Runner::<Term, Facts>::new(Facts::default())
        .with_egraph(graph)
        .with_iter_limit(1)
        .run(&rewrites);
    let graph = runner.egraph;
    let canonical = |t: &Term| Term {
        head: t.head.clone(),
        children: t.children.iter().map(|&c| graph.find(c)).collect(),
    };
    let original = canonical(&original);
    let same = |t: &Term| canonical(t) == original;
    let choice = extract(&graph, &|_, t| if same(t) { 1 << 40 } else { 1 });
    if choice.term(&graph, root).is_none_or(same) {
        return false;
    }
    let recipe = recipe(&graph, &choice, &block, &[root]).expect("a chosen term has a schedule");
    let fresh = Cell::new(first_fresh(module));
    let mut renamed = HashMap::new();
    instantiate(module, &fresh, Module::TOP, &block, &recipe, &mut renamed);
    rename(module, &renamed);
    module.remove_dead_nodes();
    infer_module(module);
    true
}

/// A pattern's text, for the tests of the table.
pub fn pattern(text: &str) -> Result<RecExpr<egg::ENodeOrVar<Term>>, String> {
    text.parse::<Pattern<Term>>()
        .map(|p| p.ast.clone())
        .map_err(|e| e.to_string())
}
