//! Answers piece by piece, as server-sent events.

use crate::answer::{Form, Place, usage};
use crate::ask::{Asked, Kind, Question};
use crate::error::Refused;
use crate::texts::{Part, Parts};
use futures_core::Stream;
use serde_json::Value;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The events of an answer.
pub struct Events {
    asked: Arc<Asked>,
    question: Question,
    form: Form,
    parts: Parts,
    places: Vec<Place>,
    /// Texts that are not done.
    left: usize,
    written: usize,
    ready: VecDeque<String>,
    ended: bool,
}

impl Events {
    /// Of these parts.
    pub fn new(asked: Arc<Asked>, question: Question, parts: Parts) -> Events {
        let count = question.echo.len();
        let mut events = Events {
            form: Form::new(&asked, &question),
            asked,
            parts,
            places: vec![Place::default(); count],
            left: count,
            written: 0,
            ready: VecDeque::new(),
            ended: false,
            question,
        };
        // A conversation's texts begin with whose words they are, before there are any; a completion's with the prompt.
        for index in 0..count {
            let text = std::mem::take(&mut events.question.echo[index]);
            if events.question.kind == Kind::Chat || !text.is_empty() {
                events.piece(&Part {
                    index,
                    text,
                    ..Part::default()
                });
            }
        }
        events
    }

    fn send(&mut self, value: &Value) {
        self.ready.push_back(format!("data: {value}\n\n"));
    }

    fn piece(&mut self, part: &Part) {
        let place = &mut self.places[part.index];
        let choice = self.form.choice(self.asked.generator(), part, place, true);
        let mut object = self.form.object(vec![choice], true);
        if self.question.usage {
            object["usage"] = Value::Null;
        }
        self.send(&object);
    }

    /// Takes a part; none if there will be no more.
    fn take(&mut self, part: Option<Part>) {
        let error = match &part {
            None => Some("the model has stopped"),
            Some(part) => match &part.end {
                Some(Err(error)) => Some(error.message.as_str()),
                _ => None,
            },
        };
        if let Some(message) = error {
            let refused = Refused::failed(message).to_json();
            self.send(&refused);
            self.ended = true;
            return;
        }
        let Some(part) = part else { return };
        self.piece(&part);
        if let Some(Ok(ended)) = part.end {
            self.written += ended.tokens;
            self.left -= 1;
        }
        if self.left == 0 {
            if self.question.usage {
                let mut object = self.form.object(vec![], true);
                object["usage"] = usage(self.question.prompt_tokens, self.written);
                self.send(&object);
            }
            self.ready.push_back("data: [DONE]\n\n".to_owned());
            self.ended = true;
        }
    }
}

impl Stream for Events {
    type Item = Result<String, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match self.parts.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(part) => self.take(part),
            }
        }
    }
}
