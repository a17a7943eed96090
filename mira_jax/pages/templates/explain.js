'use strict';
(() => {
  const {models, maps} = JSON.parse(document.getElementById('data').textContent);
  const SVG = 'http://www.w3.org/2000/svg';

  const floats = (text) => {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new Float32Array(bytes.buffer);
  };

  const quantile = (values, share) => {
    const sorted = Float32Array.from(values).sort();
    return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  };

  const element = (parent, name, attributes = {}, text = '') => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    parent.append(made);
    return made;
  };

  // Mean of rows [blocks, heads, n] over the chosen blocks and heads.
  const mean = (array, model, blocks, heads) => {
    const n = model.grid[0] * model.grid[1] * model.grid[2];
    const total = new Float32Array(n);
    for (const b of blocks) {
      for (const h of heads) {
        const start = (b * model.heads + h) * n;
        for (let i = 0; i < n; i++) total[i] += array[start + i];
      }
    }
    return total.map((x) => x / (blocks.length * heads.length));
  };

  const perToken = (values, count) => {
    const size = values.length / count;
    return Array.from({length: count}, (_, t) =>
      values.subarray(t * size, (t + 1) * size).reduce((a, b) => a + b, 0));
  };

  const colour = (map, share) => {
    const i = Math.round(255 * Math.min(1, Math.max(0, share)));
    return map.slice(3 * i, 3 * i + 3);
  };

  // One frame in grey, under a smoothed map of colours [h, w].
  const paint = (canvas, still, values, h, w, map, low, high) => {
    const context = canvas.getContext('2d');
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.filter = values ? 'grayscale(1)' : 'none';
    context.drawImage(still, 0, 0, canvas.width, canvas.height);
    context.filter = 'none';
    if (!values) return;
    const small = document.createElement('canvas');
    [small.width, small.height] = [w, h];
    const cells = small.getContext('2d');
    const picture = cells.createImageData(w, h);
    values.forEach((x, i) => {
      picture.data.set([...colour(map, (x - low) / (high - low)), 255], 4 * i);
    });
    cells.putImageData(picture, 0, 0);
    context.globalAlpha = 0.6;
    context.imageSmoothingEnabled = true;
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
    context.globalAlpha = 1;
  };

  const node = (parent, name, attributes, text) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  };

  // A strip of a map's colours between its ends.
  const legend = (parent, map, low, high) => {
    const stops = Array.from({length: 9}, (_, i) => `rgb(${colour(map, i / 8).join()})`);
    parent.append(`${low} `);
    element(parent, 'span', {class: 'legend', 'aria-hidden': 'true', style: `background: linear-gradient(to right, ${stops.join()})`});
    parent.append(` ${high}`);
  };

  // Lines over temporal tokens; series are {name, values, colour, dash}.
  const chart = (parent, title, unit, series, neutral) => {
    const figure = element(parent, 'figure');
    element(figure, 'h3', {}, title);
    const [width, height, left, bottom] = [480, 190, 52, 34];
    const all = series.flatMap((s) => s.values).concat(neutral);
    let [low, high] = [Math.min(...all), Math.max(...all)];
    const room = 0.08 * (high - low) || 0.05;
    [low, high] = [low - room, high + room];
    const count = series[0].values.length;
    const digits = Math.min(6, Math.max(2, Math.ceil(1 - Math.log10(high - low))));
    const x = (t) => left + (t + 0.5) * (width - left - 8) / count;
    const y = (v) => 8 + (high - v) / (high - low) * (height - bottom - 8);
    const words = series.map((s) => {
      const top = s.values.indexOf(Math.max(...s.values));
      return `${s.name}: highest at temporal token ${top}, ${s.values[top].toFixed(3)}`;
    }).join('; ');
    const svg = node(figure, 'svg', {
      viewBox: `0 0 ${width} ${height}`, width: '100%', role: 'img', 'aria-label': `${title}, ${unit}. ${words}`,
    });
    for (const share of [0.1, 0.5, 0.9]) {
      const value = low + share * (high - low);
      node(svg, 'line', {x1: left, x2: width - 8, y1: y(value), y2: y(value), stroke: 'var(--faint)'});
      node(svg, 'text', {x: left - 6, y: y(value) + 4, 'text-anchor': 'end', 'font-size': 12, fill: 'var(--muted)'}, value.toFixed(digits));
    }
    node(svg, 'line', {x1: left, x2: width - 8, y1: y(neutral), y2: y(neutral), stroke: 'var(--muted)', 'stroke-dasharray': '4 4'});
    const every = Math.ceil(count / 12);
    for (let t = 0; t < count; t += every) {
      node(svg, 'text', {x: x(t), y: height - bottom + 16, 'text-anchor': 'middle', 'font-size': 12, fill: 'var(--muted)'}, t);
    }
    node(svg, 'text', {x: (left + width) / 2, y: height - 2, 'text-anchor': 'middle', 'font-size': 12, fill: 'var(--muted)'}, 'temporal token');
    for (const s of series) {
      const points = s.values.map((v, t) => `${x(t)},${y(v)}`).join(' ');
      node(svg, 'polyline', {points, fill: 'none', stroke: s.colour, 'stroke-width': 2, 'stroke-dasharray': s.dash || 'none'});
      s.values.forEach((v, t) => node(svg, 'circle', {cx: x(t), cy: y(v), r: 3, fill: s.colour}));
    }
    const caption = element(figure, 'figcaption');
    caption.textContent = `${unit}. `;
    for (const s of series) {
      const name = element(caption, 'span', {style: `color: ${s.colour}; font-weight: 600`}, s.name);
      name.after(s === series[series.length - 1] ? '' : ', ');
    }
  };

  const explore = (model, section) => {
    const find = (name) => section.querySelector(name);
    const [T, h, w] = model.grid;
    const chosen = {window: model.middle, block: 'mean', head: 'mean'};
    const decoded = model.windows.map((x) => ({
      before: floats(x.before), after: x.after === null ? null : floats(x.after),
    }));
    const fill = (name, options) => {
      const select = find(`[data-choose=${name}]`);
      if (!select) return;
      for (const [value, text] of options) element(select, 'option', {value}, text);
      select.value = chosen[name];
      select.addEventListener('change', () => { chosen[name] = select.value; draw(); });
    };
    const whole = model.mira.length ? model.mira : [...Array(model.blocks).keys()];
    const what = model.mira.length ? 'mean of the blocks with MiRA' : 'mean of all';
    fill('window', model.windows.map((x, i) => [i, x.label]));
    fill('block', [['mean', what], ...Array.from({length: model.blocks}, (_, i) => [i, `${i}`])]);
    fill('head', [['mean', 'mean of all'], ...Array.from({length: model.heads}, (_, i) => [i, `${i}`])]);

    const draw = async () => {
      const own = model.windows[chosen.window];
      const maps_ = decoded[chosen.window];
      const blocks = chosen.block === 'mean' ? whole : [Number(chosen.block)];
      const heads = chosen.head === 'mean' ? [...Array(model.heads).keys()] : [Number(chosen.head)];
      const uniform = (x) => mean(x, model, blocks, heads).map((v) => v * T * h * w);
      const before = uniform(maps_.before);
      const after = maps_.after && uniform(maps_.after);
      const change = after && after.map((v, i) => v - before[i]);
      const top = Math.max(quantile(before, 0.995), after ? quantile(after, 0.995) : 0, 1e-6);
      const reach = change && Math.max(quantile(change.map(Math.abs), 0.995), 0.06);
      const rows = [['frame', null], [after ? 'attention before MiRA' : 'attention', before, maps.inferno, 0, top]];
      if (after) {
        rows.push(['attention after MiRA', after, maps.inferno, 0, top]);
        rows.push(['difference, after − before', change, maps.diverging, -reach, reach]);
      }
      const stills = await Promise.all(own.stills.map(async (source) => {
        const image = new Image();
        image.src = source;
        await image.decode();
        return image;
      }));
      const strip = find('.strip');
      strip.textContent = '';
      const size = Math.min(184, Math.max(104, Math.floor((strip.clientWidth - 120) / T) - 4));
      const table = element(strip, 'table');
      const head = element(element(table, 'thead'), 'tr');
      element(head, 'th', {scope: 'col'}, 'temporal token');
      own.tokens.forEach((name) => element(head, 'th', {scope: 'col', style: 'text-align: center; white-space: pre-line'}, name));
      const body = element(table, 'tbody');
      for (const [name, values, map, low, high] of rows) {
        const row = element(body, 'tr');
        element(row, 'th', {scope: 'row', style: 'white-space: normal; max-width: 6.5rem'}, name);
        for (let t = 0; t < T; t++) {
          const cell = element(row, 'td', {style: 'padding: 2px'});
          const part = values && values.subarray(t * h * w, (t + 1) * h * w);
          const share = part && part.reduce((a, b) => a + b, 0) / (h * w);
          const label = part ? `${name}, token ${t}: ${share.toFixed(2)} × uniform` : `frame of token ${t}`;
          const still = stills[t];
          const tall = Math.round(2 * size * still.height / still.width);
          const canvas = element(cell, 'canvas', {width: 2 * size, height: tall, role: 'img', 'aria-label': label, title: label, style: `width: ${size}px; display: block`});
          paint(canvas, still, part, h, w, map, low, high);
        }
      }
      const scale = find('.scale');
      scale.textContent = `Attention that a token receives, × uniform (1 / ${T * h * w}): `;
      legend(scale, maps.inferno, '0', top.toFixed(2));
      if (after) {
        scale.append(' Difference: ');
        legend(scale, maps.diverging, `−${reach.toFixed(2)}`, `+${reach.toFixed(2)}`);
      }
      const charts = find('.charts');
      charts.textContent = '';
      const share = (x) => perToken(x, T).map((v) => v / (h * w));
      const curves = [{name: after ? 'before MiRA' : 'attention', values: share(before), colour: 'var(--blue)', dash: '6 3'}];
      if (after) curves.push({name: 'after MiRA', values: share(after), colour: 'var(--vermillion)'});
      chart(charts, 'Attention per temporal token', '× uniform', curves, 1);
      const inside = blocks.map((b) => model.mira.indexOf(b)).filter((i) => i >= 0);
      for (const [name, unit] of [['gain', 'factor'], ['confidence', 'share of attention'], ['concentration', '1 / nats']]) {
        if (!own[name] || !inside.length) continue;
        const values = own[name][0].map((_, t) => inside.reduce((a, i) => a + own[name][i][t], 0) / inside.length);
        const middle = name === 'gain' ? 1 : name === 'confidence' ? 1 / T : values.reduce((a, b) => a + b, 0) / T;
        chart(charts, `${name[0].toUpperCase()}${name.slice(1)} per temporal token`, unit, [{name, values, colour: 'var(--vermillion)'}], middle);
      }
      const curve = curves[curves.length - 1].values;
      const best = curve.indexOf(Math.max(...curve));
      find('.summary').textContent = `Block ${chosen.block}, head ${chosen.head}: most attention on temporal token ${best}, ${curve[best].toFixed(2)} × uniform.`;
    };
    find('.explorer').hidden = false;
    draw();
  };

  models.forEach((model, i) => explore(model, document.getElementById(`model-${i}`)));
})();
