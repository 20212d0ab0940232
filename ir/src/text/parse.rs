//! Text to module: tokens, statements, names.
//!
//! One pass: nodes are made as they are read, and operands that stand further down are filled in at the
//! end. Mistakes of syntax stop; unknown names are gathered.

use super::Parsed;
use super::lex::{MAX_TEXT, Token, tokens};
use crate::builder::infer_node;
use crate::diagnostic::{
    Code, Diagnostic, LIMIT, LITERAL, Place, REDEFINED, SYNTAX, TYPE_RULE, UNDEFINED, UNKNOWN_OP,
};
use crate::verify::signature;
use crate::{Attrs, Constant, Module, NodeId, Op, RegionId, Type, ValueId};
use bytes::Bytes;
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// How deeply regions, types, terms and dimensions nest, all together.
const MAX_DEPTH: usize = 160;

/// Reading stops here; the mistake is in the parser's list.
pub struct Fail;

/// The state of reading.
pub struct Parser<'t> {
    tokens: Vec<(Token, Range<usize>)>,
    at: usize,
    depth: usize,
    pub(super) weights: Option<&'t Bytes>,
    errors: Vec<Diagnostic>,
    out: Parsed,
    names: HashMap<String, ValueId>,
    /// Uses of values that were not yet defined.
    waiting: Vec<(Use, String, Range<usize>)>,
    fresh: Cell<u32>,
}

/// Where a value is used.
#[derive(Clone, Copy)]
enum Use {
    Operand(NodeId, usize),
    Output(RegionId, usize),
}

/// Results that a statement defines.
type Results = Vec<(String, String, Range<usize>)>;

/// Reads a module; see [`super::parse_located`].
pub fn parse(text: &str, weights: Option<&Bytes>) -> Result<Parsed, Vec<Diagnostic>> {
    if text.len() > MAX_TEXT {
        let message = format!("the text is longer than {MAX_TEXT} bytes");
        return Err(vec![Diagnostic::new(&LIMIT, Place::Program, message)]);
    }
    let tokens =
        tokens(text).map_err(|e| vec![Diagnostic::new(&SYNTAX, Place::Text(e.span), e.message)])?;
    let fresh = Cell::new(first_fresh(&tokens));
    let mut p = Parser {
        tokens,
        at: 0,
        depth: 0,
        weights,
        errors: vec![],
        out: Parsed {
            module: Module::new(""),
            nodes: HashMap::new(),
            values: HashMap::new(),
        },
        names: HashMap::new(),
        waiting: vec![],
        fresh,
    };
    let _ = p.function();
    if p.errors.is_empty() {
        Ok(p.out)
    } else {
        Err(p.errors)
    }
}

/// A number above those of all `?n` symbols in the text.
fn first_fresh(tokens: &[(Token, Range<usize>)]) -> u32 {
    let number = |t: &Token| match t {
        Token::Word(w) => w.strip_prefix('?')?.parse::<u32>().ok(),
        _ => None,
    };
    tokens
        .iter()
        .filter_map(|(t, _)| number(t))
        .max()
        .map_or(0, |n| n.saturating_add(1))
}

/// Tokens and mistakes.
impl Parser<'_> {
    pub(super) fn peek(&self) -> &Token {
        self.peek_at(0)
    }

    pub(super) fn peek_at(&self, ahead: usize) -> &Token {
        self.tokens
            .get(self.at + ahead)
            .map_or(&Token::End, |(t, _)| t)
    }

    /// Bytes of the next token.
    pub(super) fn here(&self) -> Range<usize> {
        self.tokens[self.at.min(self.tokens.len() - 1)].1.clone()
    }

    /// Bytes of the last token read.
    pub(super) fn before(&self) -> Range<usize> {
        self.tokens[self.at.clamp(1, self.tokens.len()) - 1]
            .1
            .clone()
    }

    pub(super) fn next(&mut self) -> Token {
        let token = self.peek().clone();
        if self.at < self.tokens.len() {
            self.at += 1;
        }
        token
    }

    pub(super) fn fail<T>(
        &mut self,
        code: &'static Code,
        span: Range<usize>,
        message: impl Into<String>,
    ) -> Result<T, Fail> {
        self.errors
            .push(Diagnostic::new(code, Place::Text(span), message));
        Err(Fail)
    }

    pub(super) fn fail_help<T>(
        &mut self,
        code: &'static Code,
        span: Range<usize>,
        message: impl Into<String>,
        help: &str,
    ) -> Result<T, Fail> {
        self.errors
            .push(Diagnostic::new(code, Place::Text(span), message).help(help));
        Err(Fail)
    }

    /// A mistake at the token just read.
    pub(super) fn fail_before<T>(
        &mut self,
        code: &'static Code,
        message: impl Into<String>,
    ) -> Result<T, Fail> {
        let span = self.before();
        self.fail(code, span, message)
    }

    /// The token just read is not what is needed.
    pub(super) fn expected<T>(&mut self, what: &str, found: &Token) -> Result<T, Fail> {
        self.fail_before(
            &SYNTAX,
            format!("expected {what}, found {}", found.describe()),
        )
    }

    /// Runs `read` one level deeper.
    pub(super) fn nested<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Fail>,
    ) -> Result<T, Fail> {
        if self.depth >= MAX_DEPTH {
            let span = self.here();
            return self.fail(&LIMIT, span, format!("nested more than {MAX_DEPTH} deep"));
        }
        self.depth += 1;
        let out = read(self);
        self.depth -= 1;
        out
    }

    pub(super) fn eat_sign(&mut self, sign: char) -> bool {
        let found = *self.peek() == Token::Sign(sign);
        if found {
            self.at += 1;
        }
        found
    }

    pub(super) fn sign(&mut self, sign: char) -> Result<(), Fail> {
        match self.next() {
            Token::Sign(c) if c == sign => Ok(()),
            other => self.expected(&format!("`{sign}`"), &other),
        }
    }

    pub(super) fn word(&mut self, what: &str) -> Result<String, Fail> {
        match self.next() {
            Token::Word(w) => Ok(w),
            other => self.expected(what, &other),
        }
    }

    fn keyword(&mut self, word: &str) -> Result<(), Fail> {
        match self.next() {
            Token::Word(w) if w == word => Ok(()),
            other => self.expected(&format!("`{word}`"), &other),
        }
    }

    fn at_word(&self, word: &str) -> bool {
        matches!(self.peek(), Token::Word(w) if w == word)
    }

    /// A word or a quoted text.
    pub(super) fn name(&mut self, what: &str) -> Result<String, Fail> {
        match self.next() {
            Token::Word(w) | Token::Str(w) => Ok(w),
            other => self.expected(what, &other),
        }
    }

    pub(super) fn string(&mut self) -> Result<String, Fail> {
        match self.next() {
            Token::Str(s) => Ok(s),
            other => self.expected("a quoted text", &other),
        }
    }

    /// True before `name = `.
    pub(super) fn names_value(&self) -> bool {
        matches!(self.peek(), Token::Word(_) | Token::Str(_))
            && *self.peek_at(1) == Token::Sign('=')
    }
}

/// Statements.
impl Parser<'_> {
    fn function(&mut self) -> Result<(), Fail> {
        self.keyword("fn")?;
        self.out.module.name = self.name("the program's name")?;
        self.inputs(Module::TOP)?;
        match self.next() {
            Token::Arrow => {}
            other => return self.expected("`->`", &other),
        }
        let results = self.signature_results()?;
        self.sign('{')?;
        self.body(Module::TOP, "return")?;
        match self.next() {
            Token::End => {}
            other => return self.expected("the end of the text", &other),
        }
        self.resolve_waiting();
        self.name_outputs(results)
    }

    /// `(y: f32[2], _)`; the types may be left out.
    fn signature_results(&mut self) -> Result<Vec<(String, Option<Type>, Range<usize>)>, Fail> {
        self.sign('(')?;
        let mut out = vec![];
        while !self.eat_sign(')') {
            if !out.is_empty() {
                self.sign(',')?;
            }
            let start = self.here().start;
            let unnamed = self.at_word("_");
            let mut name = self.name("an output's name")?;
            if unnamed {
                name.clear();
            }
            let ty = if self.eat_sign(':') {
                Some(self.ty()?)
            } else {
                None
            };
            out.push((name, ty, start..self.before().end));
        }
        Ok(out)
    }

    fn name_outputs(
        &mut self,
        results: Vec<(String, Option<Type>, Range<usize>)>,
    ) -> Result<(), Fail> {
        let outputs = self.out.module.top().outputs.clone();
        if results.len() != outputs.len() {
            let message = format!(
                "{} outputs are declared, {} are returned",
                results.len(),
                outputs.len()
            );
            return self.fail_before(&LITERAL, message);
        }
        if !self.errors.is_empty() {
            return Err(Fail);
        }
        for ((_, ty, span), v) in results.iter().zip(outputs) {
            let found = &self.out.module.value(v).ty;
            if let Some(ty) = ty.as_ref().filter(|ty| *ty != found) {
                let message =
                    format!("the output is declared `{ty}`, the value returned is `{found}`");
                return self.fail(&LITERAL, span.clone(), message);
            }
        }
        if results.iter().any(|(name, ..)| !name.is_empty()) {
            self.out.module.output_names = results.into_iter().map(|(name, ..)| name).collect();
        }
        Ok(())
    }

    /// `(%x: f32[2], %y: f32[2])`.
    fn inputs(&mut self, region: RegionId) -> Result<(), Fail> {
        self.sign('(')?;
        while !self.eat_sign(')') {
            if !self.out.module.region(region).inputs.is_empty() {
                self.sign(',')?;
            }
            let (written, name, span) = self.value()?;
            self.sign(':')?;
            let ty = self.ty()?;
            let v = self.out.module.add_input(region, &name, ty);
            self.define(written, v, span);
        }
        Ok(())
    }

    fn value(&mut self) -> Result<(String, String, Range<usize>), Fail> {
        match self.next() {
            Token::Value { written, name } => Ok((written, name, self.before())),
            other => self.expected("a value `%name`", &other),
        }
    }

    fn define(&mut self, written: String, v: ValueId, span: Range<usize>) {
        self.out.values.insert(v, span.clone());
        if let Some(&first) = self.names.get(&written) {
            let message = format!("`%{written}` is defined twice");
            let mut d = Diagnostic::new(&REDEFINED, Place::Text(span), message);
            if let Some(first) = self.out.values.get(&first) {
                d = d.label(Place::Text(first.clone()), "first here");
            }
            self.errors.push(d);
            return;
        }
        self.names.insert(written, v);
    }

    /// A value, now or once it is defined; until then any id stands in its place.
    fn use_value(&mut self, at: Use) -> Result<ValueId, Fail> {
        let (written, _, span) = self.value()?;
        if let Some(&v) = self.names.get(&written) {
            return Ok(v);
        }
        self.waiting.push((at, written, span));
        Ok(ValueId(0))
    }

    fn resolve_waiting(&mut self) {
        for (at, written, span) in std::mem::take(&mut self.waiting) {
            let Some(&v) = self.names.get(&written) else {
                let message = format!("`%{written}` is nowhere defined");
                self.errors
                    .push(Diagnostic::new(&UNDEFINED, Place::Text(span), message));
                continue;
            };
            match at {
                Use::Operand(n, i) => self.out.module.node_mut(n).operands[i] = Some(v),
                Use::Output(r, i) => self.out.module.region_mut(r).outputs[i] = v,
            }
        }
    }

    /// Statements up to `end` and its values, and the closing brace.
    fn body(&mut self, region: RegionId, end: &str) -> Result<(), Fail> {
        while !self.at_word(end) {
            if region == Module::TOP && self.at_word("const") {
                self.constant()?;
            } else {
                self.statement(region)?;
            }
        }
        self.next();
        while matches!(self.peek(), Token::Value { .. }) {
            let i = self.out.module.region(region).outputs.len();
            let v = self.use_value(Use::Output(region, i))?;
            self.out.module.region_mut(region).outputs.push(v);
            if !self.eat_sign(',') {
                break;
            }
        }
        self.sign('}')
    }

    fn constant(&mut self) -> Result<(), Fail> {
        self.next();
        let (written, name, span) = self.value()?;
        self.sign('=')?;
        let term = self.term()?;
        let v = self.out.module.add_constant(&name, Constant::new(term));
        self.define(written, v, span);
        Ok(())
    }

    fn statement(&mut self, region: RegionId) -> Result<(), Fail> {
        let start = self.here().start;
        let results = self.results()?;
        self.sign('=')?;
        let op_name = self.word("an op")?;
        // An unknown op is read to its end with any op in its place, so that the next mistake is found too.
        let op = match Op::named(&op_name).or_else(|| Op::all().next()) {
            Some(op) if op.name == op_name => op,
            stand_in => {
                let message = format!("there is no op `{op_name}`");
                let failed = self.fail_before(&UNKNOWN_OP, message);
                match stand_in {
                    Some(op) => op,
                    None => return failed,
                }
            }
        };
        let id = self
            .out
            .module
            .make_node(op, "", vec![], Attrs::new(), vec![], vec![]);
        self.operands(id)?;
        if *self.peek() == Token::Sign('{')
            && (*self.peek_at(1) == Token::Sign('}') || *self.peek_at(2) == Token::Sign('='))
        {
            let attrs = self.attrs()?;
            self.out.module.node_mut(id).attrs = attrs;
        }
        let types = self.types()?;
        if matches!(self.peek(), Token::Str(_)) {
            self.out.module.node_mut(id).name = self.string()?;
        }
        self.out.nodes.insert(id, start..self.before().end);
        if self.eat_sign('{') {
            while !self.eat_sign('}') {
                self.region(id)?;
            }
        }
        self.finish(region, id, results, types)
    }

    fn results(&mut self) -> Result<Results, Fail> {
        if self.eat_sign('(') {
            self.sign(')')?;
            return Ok(vec![]);
        }
        let mut out = vec![self.value()?];
        while self.eat_sign(',') {
            out.push(self.value()?);
        }
        Ok(out)
    }

    fn operands(&mut self, id: NodeId) -> Result<(), Fail> {
        self.sign('(')?;
        while !self.eat_sign(')') {
            let i = self.out.module.node(id).operands.len();
            if i > 0 {
                self.sign(',')?;
            }
            let operand = if self.at_word("_") {
                self.next();
                None
            } else {
                Some(self.use_value(Use::Operand(id, i))?)
            };
            self.out.module.node_mut(id).operands.push(operand);
        }
        Ok(())
    }

    fn attrs(&mut self) -> Result<Attrs, Fail> {
        self.sign('{')?;
        let mut attrs = Attrs::new();
        while !self.eat_sign('}') {
            if !attrs.is_empty() {
                self.sign(',')?;
            }
            let name = self.name("an attribute's name")?;
            let span = self.before();
            self.sign('=')?;
            let value = self.attr()?;
            if attrs.insert(name.clone(), value).is_some() {
                return self.fail(&LITERAL, span, format!("attribute `{name}` is given twice"));
            }
        }
        Ok(attrs)
    }

    fn types(&mut self) -> Result<Option<Vec<Type>>, Fail> {
        if !self.eat_sign(':') {
            return Ok(None);
        }
        let mut types = vec![self.ty()?];
        while self.eat_sign(',') {
            types.push(self.ty()?);
        }
        Ok(Some(types))
    }

    fn region(&mut self, owner: NodeId) -> Result<(), Fail> {
        self.nested(|p| {
            let label = p.word("a region's name")?;
            let node = p.out.module.node(owner);
            let expected = node
                .op
                .regions
                .get(node.regions.len())
                .copied()
                .unwrap_or("_");
            if label != expected && label != "_" {
                let message = format!("expected region `{expected}`, found `{label}`");
                return p.fail_before(&SYNTAX, message);
            }
            let region = p.out.module.add_region();
            p.out.module.node_mut(owner).regions.push(region);
            if *p.peek() == Token::Sign('(') {
                p.inputs(region)?;
            }
            p.sign('{')?;
            p.body(region, "yield")
        })
    }

    /// Gives a node its results and its place.
    fn finish(
        &mut self,
        region: RegionId,
        id: NodeId,
        results: Results,
        types: Option<Vec<Type>>,
    ) -> Result<(), Fail> {
        let span = self.out.nodes.get(&id).cloned().unwrap_or_default();
        let types = match types {
            Some(types) if types.len() != results.len() => {
                let message = format!("{} results with {} types", results.len(), types.len());
                return self.fail(&SYNTAX, span, message);
            }
            Some(types) => types,
            None => self.infer(id, results.len(), span)?,
        };
        self.out.module.set_result_types(id, types);
        let ids = self.out.module.node(id).results.clone();
        for ((written, name, span), v) in results.into_iter().zip(ids) {
            self.out.module.value_mut(v).name = name;
            self.define(written, v, span);
        }
        self.out.module.region_mut(region).nodes.push(id);
        Ok(())
    }

    /// Types that were left out, by the op's rule.
    fn infer(
        &mut self,
        id: NodeId,
        n_results: usize,
        span: Range<usize>,
    ) -> Result<Vec<Type>, Fail> {
        if n_results == 0 {
            return Ok(vec![]);
        }
        if !self.errors.is_empty() {
            return Err(Fail);
        }
        if !self.waiting.is_empty() {
            let later: HashSet<&str> = self.tokens[self.at..]
                .iter()
                .filter_map(|(t, _)| match t {
                    Token::Value { written, .. } => Some(written.as_str()),
                    _ => None,
                })
                .collect();
            if self
                .waiting
                .iter()
                .any(|(_, name, _)| !later.contains(name.as_str()))
            {
                self.resolve_waiting();
                return Err(Fail);
            }
            let help = "write `: type` after the operands";
            return self.fail_help(&LITERAL, span, "the result types must be written, as something above is used before its definition", help);
        }
        let wrong = signature(&self.out.module, id, n_results);
        if !wrong.is_empty() {
            self.errors
                .extend(wrong.into_iter().map(|d| self.out.locate(d)));
            return Err(Fail);
        }
        match infer_node(&self.out.module, id, &self.fresh) {
            Ok(types) if types.len() >= n_results => {
                Ok(types.into_iter().take(n_results).collect())
            }
            Ok(types) => {
                let message = format!("the op has {} results, {n_results} are named", types.len());
                self.fail(&crate::diagnostic::RESULTS, span, message)
            }
            Err(e) => self.fail(&TYPE_RULE, span, e.0),
        }
    }
}
