// The theme is one of the user's preferences; a copy in local storage prevents a flash at the first paint.
(() => {
  const known = ['light', 'dark'];
  let kept = null;
  try {
    kept = localStorage.getItem('theme');
  } catch {
    // Storage is disabled: the system's setting applies.
  }
  if (known.includes(kept)) document.documentElement.dataset.theme = kept;
})();
