//! Operators of `ai.onnx.ml`.

use super::{Form, Row, Step};
use lapidary_ir::builder::Builder;
use lapidary_ir::ops::OpError;
use lapidary_ir::{Attr, ElemType};

pub(super) static ROWS: &[Row] = &[Row::new(&["LabelEncoder"], 2, label_encoder_1)];

/// `classes_strings` listed the texts; the operand's type said which way to map.
fn label_encoder_1(form: &mut Form, b: &mut Builder) -> Result<Step, OpError> {
    let Some(Attr::Strs(classes)) = form.attrs.remove("classes_strings") else {
        return Err(OpError::new("attribute `classes_strings` is missing"));
    };
    let numbers = Attr::Ints((0..classes.len() as i64).collect());
    let (keys, values) = if b.elem(form.operand(0)?)? == ElemType::String {
        (
            ("keys_strings", Attr::Strs(classes)),
            ("values_int64s", numbers),
        )
    } else {
        (
            ("keys_int64s", numbers),
            ("values_strings", Attr::Strs(classes)),
        )
    };
    for (name, attr) in [keys, values] {
        form.attrs.insert(name.into(), attr);
    }
    Ok(Step::Keep)
}
