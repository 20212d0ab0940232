//! The border refuses what it cannot use; the whole of it is tested by a C program in the root's `tests/`.

use super::*;

#[test]
fn null_and_damaged_arguments_are_statuses() {
    let mut out = std::ptr::null_mut();
    // SAFETY: null is allowed.
    let status = unsafe { lapidary_create(std::ptr::null(), 1, &mut out) };
    assert_eq!(status, ARGUMENT);
    let program = [1, 2, 3];
    let mut image = LinkedImage {
        version: LINKED_VERSION,
        machine: machine(),
        code: std::ptr::null(),
        code_bytes: 0,
        weights: std::ptr::null(),
        weights_bytes: 0,
        program: program.as_ptr(),
        program_bytes: 3,
    };
    // SAFETY: the parts are there.
    assert_eq!(unsafe { lapidary_create(&image, 1, &mut out) }, PROGRAM);
    image.version += 1;
    // SAFETY: the parts are there.
    assert_eq!(unsafe { lapidary_create(&image, 1, &mut out) }, PROGRAM);
    // SAFETY: the text lives until the next call.
    let text = unsafe { CStr::from_ptr(lapidary_last_error()) };
    assert!(text.to_string_lossy().contains("version"), "{text:?}");
    assert!(out.is_null());
    // SAFETY: null is allowed.
    unsafe { lapidary_destroy(std::ptr::null_mut()) };
    // SAFETY: null is allowed.
    let status = unsafe {
        lapidary_run(
            std::ptr::null(),
            std::ptr::null(),
            0,
            std::ptr::null_mut(),
            0,
        )
    };
    assert_eq!(status, ARGUMENT);
}
