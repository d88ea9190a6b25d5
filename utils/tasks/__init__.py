"""What task.name may say: a function per task."""
