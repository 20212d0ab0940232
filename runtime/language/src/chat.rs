//! Conversations as prompts, by the template that comes with a model.

use crate::Error;
use crate::settings::{CHAT_TEMPLATE, TOKENIZER_CONFIG, file, object};
use lapidary_abi::program::File;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, context};
use serde_json::{Map, Value};

/// One side's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`, or what else the template knows.
    pub role: String,
    /// The words.
    pub content: String,
}

/// Most steps that a template may take.
const FUEL: u64 = 10_000_000;

/// The prompt that asks for the next words of the assistant. It has the tokens that begin a text already.
pub fn prompt(files: &[File], messages: &[Message]) -> Result<String, Error> {
    let config = object(files, TOKENIZER_CONFIG)?;
    let template = template(files, &config).ok_or_else(|| {
        Error::new(
            "the model has no template of conversations",
            "give the whole prompt without --chat",
        )
    })?;
    let mut env = Environment::new();
    env.set_fuel(Some(FUEL));
    // As transformers has it.
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .expect("the usual delimiters are valid");
    env.set_syntax(syntax);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_function(
        "raise_exception",
        |text: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, text))
        },
    );
    let messages: Vec<_> = messages
        .iter()
        .map(|m| context! { role => &m.role, content => &m.content })
        .collect();
    let special = |name: &str| special_token(&config, name);
    env.render_str(
        template,
        context! {
            messages, add_generation_prompt => true,
            bos_token => special("bos_token"), eos_token => special("eos_token"),
            unk_token => special("unk_token"), pad_token => special("pad_token"),
        },
    )
    .map_err(|e| {
        Error::new(
            format!("the template of conversations: {e}"),
            "does the model know these roles, in this order? else give the whole prompt without --chat",
        )
    })
}

/// The template: a file of its own, or one of those in the tokenizer's settings.
fn template<'f>(files: &'f [File], config: &'f Map<String, Value>) -> Option<&'f str> {
    if let Some(own) = file(files, CHAT_TEMPLATE) {
        return Some(own);
    }
    match config.get("chat_template")? {
        Value::String(template) => Some(template),
        Value::Array(all) => {
            let named = |t: &&Value| t["name"] == "default";
            all.iter().find(named)?["template"].as_str()
        }
        _ => None,
    }
}

/// A special token's text: a string, or an object with one.
fn special_token(config: &Map<String, Value>, name: &str) -> String {
    let text = config
        .get(name)
        .and_then(|v| v.as_str().or(v["content"].as_str()));
    text.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(config: Value, messages: &[(&str, &str)]) -> Result<String, Error> {
        let files = [File {
            name: TOKENIZER_CONFIG.to_owned(),
            text: config.to_string(),
        }];
        let messages: Vec<Message> = messages
            .iter()
            .map(|&(role, content)| Message {
                role: role.to_owned(),
                content: content.to_owned(),
            })
            .collect();
        prompt(&files, &messages)
    }

    #[test]
    fn templates_are_those_of_transformers() {
        let template = "{{ bos_token }}{% for m in messages %}\n{% if m['role'] not in ['system', 'user'] %}\n\
                        {{ raise_exception('no ' + m['role']) }}{% endif %}\n<|{{ m['role'].upper() }}|>\
                        {{ m['content'].strip() }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|A|>{% endif %}";
        let config = serde_json::json!({
            "chat_template": template, "bos_token": {"content": "<s>"}, "eos_token": "</s>",
        });
        let text = rendered(config.clone(), &[("system", " be kind "), ("user", "hi")]);
        assert_eq!(
            text.expect("rendered"),
            "<s><|SYSTEM|>be kind</s><|USER|>hi</s><|A|>"
        );
        let error = rendered(config, &[("tool", "x")]).expect_err("an unknown role");
        assert!(error.message.contains("no tool"), "{error}");
        let many = serde_json::json!({"chat_template": [
            {"name": "tool_use", "template": "x"}, {"name": "default", "template": "{{ messages|length }}"},
        ]});
        assert_eq!(rendered(many, &[("user", "hi")]).expect("rendered"), "1");
        assert!(rendered(serde_json::json!({}), &[]).is_err());
        let endless = serde_json::json!({"chat_template": "{% for i in range(9999) %}{% for j in range(9999) %}{{ i }}{% endfor %}{% endfor %}"});
        assert!(rendered(endless, &[]).is_err());
    }
}
