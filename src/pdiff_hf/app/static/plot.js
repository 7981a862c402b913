// A click takes the nearest network within a finger's width; arrows walk through the list, Enter opens one.
const networks = () => [...element.querySelectorAll('circle[data-network]')];
const open = (point) => trigger('click', { network: Number(point.dataset.network) });
element.addEventListener('click', (event) => {
  let best = null, least = 24;
  for (const point of networks()) {
    const box = point.getBoundingClientRect();
    const distance = Math.hypot(event.clientX - box.x - box.width / 2, event.clientY - box.y - box.height / 2);
    if (distance < least) [best, least] = [point, distance];
  }
  if (best) open(best);
});
element.addEventListener('keydown', (event) => {
  const point = event.target.closest('circle[data-network]');
  if (!point) return;
  const all = networks(), place = all.indexOf(point);
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -place, End: all.length - 1 - place };
  if (event.key in steps) {
    const next = all[Math.min(all.length - 1, Math.max(0, place + steps[event.key]))];
    point.setAttribute('tabindex', '-1');
    next.setAttribute('tabindex', '0');
    next.focus();
  } else if (event.key === 'Enter' || event.key === ' ') {
    open(point);
  } else return;
  event.preventDefault();
});
