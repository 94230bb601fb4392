export function pace() {}
